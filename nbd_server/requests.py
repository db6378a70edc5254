"""Requests of the transmission phase: parsed values, and which of them are legal.

Pure. A request that `refusal` lets through lies inside the disk, carries only flags that its
command knows, and is no larger than the protocol allows, so nothing behind it checks again.
Source: doc/proto.md, "Request message", "Command flags", "Request types", "Error values".
"""

from __future__ import annotations

from typing import NamedTuple

from nbd_server.backend import Backend
from nbd_server.protocol import MAX_PAYLOAD_BYTES, Command, CommandFlag, NbdErrno

# Plain integers: the complement of an IntFlag has only the bits that the flag knows.
_FUA = int(CommandFlag.FUA)  # clients are known to set it on anything
_DF = int(CommandFlag.DF)
_ALLOWED_FLAGS: dict[int, int] = {
    Command.READ: _FUA | _DF,
    Command.WRITE: _FUA,
    Command.DISC: _FUA,
    Command.FLUSH: _FUA,
    Command.TRIM: _FUA,
    Command.CACHE: _FUA,
    Command.WRITE_ZEROES: _FUA | int(CommandFlag.NO_HOLE | CommandFlag.FAST_ZERO),
    Command.BLOCK_STATUS: _FUA | int(CommandFlag.REQ_ONE),
}
WRITING = frozenset([Command.WRITE, Command.TRIM, Command.WRITE_ZEROES])
_NO_SPACE_BEHIND = frozenset([Command.WRITE, Command.WRITE_ZEROES])  # past the end: ENOSPC


class Refusal(NamedTuple):
    errno: NbdErrno
    message: str


class PartialWrite:
    """A large WRITE that is done in pieces while it is still coming in."""

    __slots__ = ("cookie", "failure", "flags", "outstanding", "received")

    def __init__(self, *, cookie: int, flags: int) -> None:
        self.cookie = cookie
        self.flags = flags
        self.outstanding = 0  # pieces handed to the backend and not done
        self.received = False  # the last piece was handed over
        self.failure: Refusal | None = None  # of the first piece that failed

    @property
    def done(self) -> bool:
        return self.received and not self.outstanding


class Request(NamedTuple):
    """One command; a tuple because one is made per request that misses."""

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: bytes | memoryview = b""
    part_of: object = None  # the large READ or WRITE that this is a piece of


def refusal(
    request: Request, backend: Backend, *, structured: bool, allocation: bool
) -> Refusal | None:
    """Return why the request must fail without reaching the backend, or None."""
    command, flags, _, offset, length, _, _ = request
    allowed = _ALLOWED_FLAGS.get(command)
    if allowed is None:
        return Refusal(NbdErrno.EINVAL, f"unknown command {command}")
    if not structured:
        allowed &= ~_DF  # was not offered
    if flags & ~allowed:
        return Refusal(NbdErrno.EINVAL, f"flags {flags:#x} on command {command}")
    if command in WRITING and backend.read_only:
        return Refusal(NbdErrno.EPERM, "the export is read-only")
    if command == Command.FLUSH:  # offset and length mean nothing
        return None
    if command == Command.BLOCK_STATUS and not (allocation and length):
        return Refusal(NbdErrno.EINVAL, "no metadata context was negotiated, or no length given")
    if command in (Command.READ, Command.WRITE) and length > MAX_PAYLOAD_BYTES:
        return Refusal(NbdErrno.EINVAL, f"{length} bytes exceed the maximum payload")
    if offset + length > backend.size_bytes:
        errno = NbdErrno.ENOSPC if command in _NO_SPACE_BEHIND else NbdErrno.EINVAL
        return Refusal(errno, f"[{offset}, {offset + length}) ends behind the disk")
    if flags & CommandFlag.FAST_ZERO and (flags & CommandFlag.NO_HOLE or not backend.fast_zero):
        return Refusal(NbdErrno.ENOTSUP, "not faster than writing zeros")
    return None
