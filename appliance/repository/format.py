"""Every on-disk structure of the repository: magics, versions, layouts and limits.

All integers are little-endian; reserved bytes are zero and checked on reading. The tables of
`docs/format.md` are compared with this module by a test. Anything read from a blob is checked
against the limits here before memory is allocated for it.

A *pack* is a header, framed records one after another, and a footer that lists them. A *record*
frames one chunk or one tree node. An *index segment* repeats the footers of several packs, so
that the index can be filled without opening each pack. A *sealed document* (manifest, quarantine
note) is a JSON text that is authenticated and, in an encrypted repository, encrypted.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from struct import Struct

from appliance.base.units import GIB, KIB, MIB

REPOSITORY_VERSION = 1

# Disk geometry.
BLOCK_BYTES = 4 * KIB
SEGMENT_BYTES = 8 * MIB
SEGMENT_BLOCKS = SEGMENT_BYTES // BLOCK_BYTES
NODE_CHILDREN = 1024
DIGEST_BYTES = 32
EMPTY_DIGEST = bytes(DIGEST_BYTES)  # the child or root of a range that is all zeros

# What a reader accepts; a chunk never crosses a segment border. See `chunker.py` for the rules.
CHUNK_MAX_BLOCKS = 64
CHUNK_MAX_BYTES = CHUNK_MAX_BLOCKS * BLOCK_BYTES

# Limits on what is read.
PACK_TARGET_BYTES = 64 * MIB
PACK_LIMIT_BYTES = 2 * GIB
INDEX_SEGMENT_LIMIT_BYTES = 256 * MIB
DOCUMENT_LIMIT_BYTES = 64 * MIB


class RecordKind(IntEnum):
    CHUNK = 1
    LEAF = 2
    INNER = 3


class RecordFlag(IntFlag):
    ZSTD = 1  # the payload is one zstd frame; without it, the raw bytes
    SEALED = 2  # then AES-256-GCM: 12 bytes nonce, ciphertext, 16 bytes tag


class PackKind(IntEnum):
    DATA = 1  # chunks
    TREE = 2  # leaves and inner nodes


PACK_MAGIC = b"HFPACK\x1a\n"
PACK_HEADER = Struct("<8sHH4x16s16s")  # magic version kind; repository id, pack id
RECORD_MAGIC = b"HFrc"
RECORD_HEADER = Struct("<4sBBH32sIIII")  # magic kind flags reserved digest raw payload crc; crc
FOOTER_ENTRY = Struct("<32sIIIBB2x")  # digest offset stored raw kind flags
FOOTER_MAGIC = b"HFfooter"
FOOTER_TRAILER = Struct("<IIQ8s")  # entry count, CRC32C of the entries, footer offset, magic
INDEX_MAGIC = b"HFINDEX\n"
INDEX_HEADER = Struct("<8sHHI16s")  # magic version reserved, pack count, repository id
INDEX_PACK = Struct("<16sQII")  # pack id, pack size, kind, entry count; then its entries
DOCUMENT_MAGIC = b"HFDOC\x1a\r\n"
DOCUMENT_HEADER = Struct("<8sHHI")  # magic version flags reserved
LEAF_MAGIC = b"HFlf"
INNER_MAGIC = b"HFin"
NODE_HEADER = Struct("<4sBBH")  # magic version level entry count
LEAF_ENTRY = Struct("<HH32s")  # first block, block count, digest
INNER_ENTRY = Struct("<H2x32s")  # child number, digest
INDEX_VALUE = Struct("<IIII")  # pack number, offset, stored length, raw length

assert PACK_HEADER.size == 48
assert RECORD_HEADER.size == 56
assert FOOTER_ENTRY.size == 48
assert FOOTER_TRAILER.size == 24
assert INDEX_HEADER.size == 32
assert INDEX_PACK.size == 32
assert DOCUMENT_HEADER.size == 16
assert NODE_HEADER.size == 8
assert LEAF_ENTRY.size == 36
assert INNER_ENTRY.size == 36
assert INDEX_VALUE.size == 16

MAC_BYTES = 32
PACK_FRAME_BYTES = PACK_HEADER.size + FOOTER_TRAILER.size
LEAF_LIMIT_BYTES = NODE_HEADER.size + SEGMENT_BLOCKS * LEAF_ENTRY.size
INNER_LIMIT_BYTES = NODE_HEADER.size + NODE_CHILDREN * INNER_ENTRY.size
RAW_LIMIT_BYTES = {
    RecordKind.CHUNK: CHUNK_MAX_BYTES,
    RecordKind.LEAF: LEAF_LIMIT_BYTES,
    RecordKind.INNER: INNER_LIMIT_BYTES,
}
RECORD_LIMIT_BYTES = RECORD_HEADER.size + CHUNK_MAX_BYTES + KIB

PACKS = "packs"
INDEX_SEGMENTS = "index"
POINTS = "points"
QUARANTINE = "quarantine"
BOOT_PROFILES = "profiles"
CONFIG_NAME = "config.json"


def pack_name(pack_id: bytes) -> str:
    """Return the blob name of a pack; 256 folders keep listings short."""
    text = pack_id.hex()
    return f"{PACKS}/{text[:2]}/{text}.pack"


def pack_id_of(name: str) -> bytes | None:
    """The pack id in a blob name, or None for a name that is not a pack's."""
    stem, _, suffix = name.rpartition("/")[2].partition(".")
    if suffix != "pack" or len(stem) != 32:
        return None
    try:
        pack_id = bytes.fromhex(stem)
    except ValueError:
        return None
    return pack_id if pack_name(pack_id) == name else None


def index_segment_name(run_id: str, number: int) -> str:
    return f"{INDEX_SEGMENTS}/{run_id}-{number:06d}.idx"


def point_name(point_id: str) -> str:
    return f"{POINTS}/{point_id}.point"


KEY_SLOTS = "keys"
CONFIG_LIMIT_BYTES = 64 * KIB
