"""Constants and wire structures of the NBD protocol; everything is big-endian.

Source: the NBD project's doc/proto.md (fixed newstyle negotiation, structured replies,
`base:allocation`). Extended headers, resize and the payload forms of BLOCK_STATUS are not spoken.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

DEFAULT_PORT = 10809  # registered with IANA

NBD_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x0003E889045565A9
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

MAX_NAME_BYTES = 4096  # "Values": strings longer than this are an error
MAX_PAYLOAD_BYTES = 32 << 20  # what a client that negotiates nothing may send
MAX_U32 = 0xFFFFFFFF

GREETING = Struct(">QQH")  # NBD_MAGIC, OPTION_MAGIC, handshake flags
CLIENT_FLAGS = Struct(">I")
OPTION_HEADER = Struct(">QII")  # OPTION_MAGIC, option, data length
OPTION_REPLY = Struct(">QIII")  # magic, option, reply type, data length
EXPORT_NAME_REPLY = Struct(">QH")  # size, transmission flags; then 124 zeros unless NO_ZEROES
REQUEST = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
SIMPLE_REPLY = Struct(">IIQ")  # magic, error, cookie
CHUNK = Struct(">IHHQI")  # magic, flags, type, cookie, payload length
DATA_CHUNK = Struct(">IHHQIQ")  # a CHUNK and the offset of OFFSET_DATA
HOLE_CHUNK = Struct(">IHHQIQI")  # a CHUNK, offset and length of OFFSET_HOLE
ERROR_CHUNK = Struct(">IHHQIIH")  # a CHUNK, error and message length of ERROR
STATUS_CHUNK = Struct(">IHHQII")  # a CHUNK and the context id of BLOCK_STATUS
STATUS_EXTENT = Struct(">II")  # length, status flags

assert GREETING.size == 18
assert OPTION_HEADER.size == 16
assert OPTION_REPLY.size == 20
assert EXPORT_NAME_REPLY.size == 10
assert REQUEST.size == 28
assert SIMPLE_REPLY.size == 16
assert CHUNK.size == 20
assert DATA_CHUNK.size == 28
assert HOLE_CHUNK.size == 32
assert ERROR_CHUNK.size == 26
assert STATUS_CHUNK.size == 24
assert STATUS_EXTENT.size == 8

EXPORT_NAME_PADDING = bytes(124)
ALLOCATION_CONTEXT = b"base:allocation"
ALLOCATION_CONTEXT_ID = 1


class HandshakeFlag(IntFlag):
    """The same two bits in both directions."""

    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7
    ERR_TOO_BIG = (1 << 31) + 9


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    SEND_DF = 1 << 7
    CAN_MULTI_CONN = 1 << 8
    SEND_CACHE = 1 << 10
    SEND_FAST_ZERO = 1 << 11


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class CommandFlag(IntFlag):
    FUA = 1 << 0
    NO_HOLE = 1 << 1
    DF = 1 << 2
    REQ_ONE = 1 << 3
    FAST_ZERO = 1 << 4


CHUNK_DONE = 1  # the only structured reply flag


class ChunkType(IntEnum):
    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


class Status(IntFlag):
    """Flags of an extent in the `base:allocation` context."""

    DATA = 0
    HOLE = 1
    ZERO = 2


class NbdErrno(IntEnum):
    """The errors of the protocol; the numbers are Linux's on every platform."""

    EPERM = 1
    EIO = 5
    ENOMEM = 12
    EINVAL = 22
    ENOSPC = 28
    EOVERFLOW = 75
    ENOTSUP = 95
    ESHUTDOWN = 108
