"""The overlay's journal: the durable form of its map, as an append-only file of small records.

Header (64 bytes): magic, version, record size, session id, geometry, CRC32C; then records of 32
bytes, all little-endian. Neither crosses a 512-byte sector. The records of one flush are a *group*:
they share a commit number, greater than every earlier one, and the final one carries LAST. A group
counts only when whole, and is appended only after the data it makes visible is durable.

What a crash can leave, and what it cannot. A group is acknowledged after its fsync, and the next
one begins after that. So an incomplete group at the end was never acknowledged: its sectors may be
there in part, in any order, the others being zeros or past the end of the file. It is dropped and
the file cut back. Anything else was made by a fault, not by a crash, and is refused as corrupt: a
broken record with a valid one of a *later* group behind it, or one that is neither valid nor zeros
with a valid one of its own group behind it. (A fault inside the very last record looks like a torn
write and cannot be told apart; `discarded_bytes` says what was dropped.)

Thread model: one thread at a time, the flush leader.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from enum import IntEnum
from itertools import chain
from pathlib import Path
from struct import Struct
from typing import NamedTuple

import google_crc32c

from appliance.base.atomic import replace_file
from appliance.base.errors import StorageFullError
from appliance.base.units import MIB
from appliance.blocks.overlay_errors import OverlayCorruptError, OverlayVersionError
from appliance.blocks.overlay_files import FULL, pwrite_all, storage_error

VERSION = 1
HEADER_MAGIC = b"HFOVLJNL"
HEADER = Struct(
    "<8sII16sII20sI"
)  # magic version record_bytes session_id block segment reserved crc
HEADER_BYTES = 64
assert HEADER.size == HEADER_BYTES

RECORD_MAGIC = 0x4A48
RECORD = Struct("<HBBQIIIII")  # magic kind flags commit segment slot first amount crc
RECORD_BYTES = 32
assert RECORD.size == RECORD_BYTES
_BODY_BYTES = RECORD_BYTES - 4
_CRC = Struct("<I")

FLAG_LAST = 1
NO_SLOT = 0xFFFF_FFFF
_READ_BYTES = MIB


class Kind(IntEnum):
    DATA = 1  # `amount` blocks from `first` of `segment` lie in `slot`
    ZERO = 2  # they read as zeros
    ZERO_SEGMENTS = 3  # `amount` whole segments from `segment` read as zeros


_KINDS = {int(kind): kind for kind in Kind}


class Record(NamedTuple):
    kind: Kind
    segment: int
    slot: int
    first: int
    amount: int


class _Parsed(NamedTuple):
    commit: int
    is_last: bool
    record: Record


def encode_header(session_id: bytes, block_bytes: int, segment_blocks: int) -> bytes:
    fields = (HEADER_MAGIC, VERSION, RECORD_BYTES, session_id, block_bytes, segment_blocks)
    body = HEADER.pack(*fields, bytes(20), 0)[:-4]
    return body + _CRC.pack(google_crc32c.value(body))


def encode_group(records: list[Record], commit: int) -> bytes:
    """Return the bytes of one flush; `records` is not empty."""
    parts: list[bytes] = []
    final = len(records) - 1
    for number, record in enumerate(records):
        flags = FLAG_LAST if number == final else 0
        kind, segment, slot, first, amount = record
        raw = RECORD.pack(RECORD_MAGIC, kind, flags, commit, segment, slot, first, amount, 0)
        body = raw[:_BODY_BYTES]
        parts += (body, _CRC.pack(google_crc32c.value(body)))
    return b"".join(parts)


def _parse(raw: bytes) -> _Parsed | None:
    if len(raw) != RECORD_BYTES:
        return None
    magic, kind, flags, commit, segment, slot, first, amount, crc = RECORD.unpack(raw)
    if magic != RECORD_MAGIC or google_crc32c.value(raw[:_BODY_BYTES]) != crc:
        return None
    if kind not in _KINDS or flags & ~FLAG_LAST:
        raise OverlayCorruptError(f"the journal holds a record of unknown kind {kind}, {flags}")
    return _Parsed(commit, bool(flags), Record(_KINDS[kind], segment, slot, first, amount))


class Journal:
    """An open journal. `replay` must be run to its end before anything is appended."""

    def __init__(self, path: Path, header: bytes) -> None:
        """Raises OverlayCorruptError, OverlayVersionError, StorageError."""
        self._path = path
        self._header = header
        self._commit = 0  # the greatest number that was ever used here
        self.record_count = 0
        self.discarded_bytes = 0
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self._check_header(os.pread(self._fd, HEADER_BYTES, 0))
        except BaseException as error:
            self.close()
            if isinstance(error, FileNotFoundError):
                raise OverlayCorruptError(f"{path} is missing") from error
            if isinstance(error, OSError):
                raise storage_error(f"cannot read {path}", error) from error
            raise

    @property
    def size_bytes(self) -> int:
        return HEADER_BYTES + self.record_count * RECORD_BYTES

    def replay(self) -> Iterator[Record]:
        """Yield the records of every whole group, then cut a torn end off.

        Raises: OverlayCorruptError.
        """
        group: list[Record] = []
        torn: int | None = None  # commit number of the group that is not whole yet
        raw_records = self._raw_records()
        for raw in raw_records:
            parsed = _parse(raw)
            if parsed is None or parsed.commit <= self._commit or torn not in (None, parsed.commit):
                torn = self._check_tail(chain((raw,), raw_records), torn)
                break
            torn = parsed.commit
            group.append(parsed.record)
            if parsed.is_last:
                yield from group
                self.record_count += len(group)
                self._commit = parsed.commit
                torn = None
                group = []
        self._commit = max(self._commit, torn or 0)
        self._cut()

    def append(self, records: list[Record]) -> None:
        """Make `records` durable as one group.

        Raises:
            StorageFullError: nothing of it counts; the call may be repeated.
            OSError: whether it counts is unknown, so nothing more may be written.
        """
        data = encode_group(records, self._commit + 1)
        self._commit += 1
        try:
            pwrite_all(self._fd, [data], self.size_bytes)
        except OSError as error:
            os.ftruncate(self._fd, self.size_bytes)
            if error.errno not in FULL:
                raise
            raise StorageFullError(f"no space for the journal {self._path}") from error
        os.fdatasync(self._fd)
        self.record_count += len(records)

    def replace(self, records: list[Record]) -> None:
        """Put a journal of just `records` in the place of this one, durably.

        Raises:
            StorageFullError: the old one is in place.
            OSError: which one is in place is unknown.
        """
        self._commit += 1
        data = encode_group(records, self._commit) if records else b""
        try:
            replace_file(self._path, self._header + data)
        except OSError as error:
            replaced = self._path.stat().st_ino != os.fstat(self._fd).st_ino
            if replaced or error.errno not in FULL:
                raise
            raise StorageFullError(f"no space to compact the journal {self._path}") from error
        replaced_fd = self._fd  # closed only once there is another, or a number of others' would be
        self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        os.close(replaced_fd)
        self.record_count = len(records)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _check_header(self, header: bytes) -> None:
        if header == self._header:
            return
        if header[:8] == HEADER_MAGIC and len(header) == HEADER_BYTES:
            body, (crc,) = header[:-4], _CRC.unpack(header[-4:])
            version = HEADER.unpack(header)[1]
            if google_crc32c.value(body) == crc and version > VERSION:
                raise OverlayVersionError(f"{self._path} has version {version}")
        raise OverlayCorruptError(f"{self._path} is not the journal of this session")

    def _raw_records(self) -> Iterator[bytes]:
        offset = HEADER_BYTES
        while piece := os.pread(self._fd, _READ_BYTES, offset):
            # A short read can only end inside a record at the end of the file.
            for start in range(0, len(piece), RECORD_BYTES):
                yield piece[start : start + RECORD_BYTES]
            offset += len(piece)

    def _check_tail(self, raw_records: Iterator[bytes], torn: int | None) -> int | None:
        """Raise unless this can be a group torn by a crash; return its commit number, if known."""
        damaged = False
        for raw in raw_records:
            parsed = _parse(raw)
            if parsed is None:
                damaged = damaged or raw.strip(b"\0") != b""
            elif parsed.commit > self._commit:
                if damaged:
                    raise OverlayCorruptError(f"{self._path} is damaged before its end")
                if torn not in (None, parsed.commit):
                    raise OverlayCorruptError(f"{self._path} lacks part of an acknowledged flush")
                torn = parsed.commit
        return torn

    def _cut(self) -> None:
        size_bytes = os.fstat(self._fd).st_size
        self.discarded_bytes = size_bytes - self.size_bytes
        if self.discarded_bytes:
            os.ftruncate(self._fd, self.size_bytes)
            os.fdatasync(self._fd)
