"""The log of a VHDX file, replayed in memory: the file itself is never written ([MS-VHDX] 2.3).

A file that was open for writing when its host failed, or is open now, has a log with the last
updates of tables and bitmaps; without them the tables are stale and the disk reads wrong. Entries
form the longest unbroken sequence with the highest number (`find_sequence`); `replayed` puts their
pages over the file.

The log is read whole, 64 MiB at most (Windows makes 1 MiB), and what its entries may claim is
bounded before anything is built from it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hyperv.vhdx.errors import (
    CorruptDiskFileError,
    TruncatedDiskFileError,
    UnsupportedDiskFileError,
)
from hyperv.vhdx.header import Header
from hyperv.vhdx.source import ByteSource, read_exactly
from hyperv.vhdx.structures import (
    LOG_DATA,
    LOG_DATA_SECTOR,
    LOG_DATA_SECTOR_SIGNATURE,
    LOG_DATA_SIGNATURE,
    LOG_DESCRIPTOR_BYTES,
    LOG_ENTRY,
    LOG_ENTRY_SIGNATURE,
    LOG_SECTOR_BYTES,
    LOG_ZERO,
    LOG_ZERO_SIGNATURE,
    MIB,
    MOST_FILE_BYTES,
    REGION_TABLE_OFFSETS,
    checksum,
)

MOST_LOG_BYTES: Final = 64 * MIB
_MOST_DESCRIPTORS: Final = 1 << 16  # 32768 fit into a log of 1 MiB
_MOST_PASSES: Final = 16  # entries do not overlap; leftovers of older ones may


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    offset: int  # in the log
    tail: int
    sequence: int
    descriptors: int
    flushed_file_bytes: int
    last_file_bytes: int
    length: int  # may go round the end of the log

    @property
    def end(self) -> int:
        return self.offset + self.length


def replayed(source: ByteSource, header: Header) -> ByteSource:
    """Return the file as it is once its log was replayed: `source` itself when there is no log.

    Raises:
        CorruptDiskFileError: the log has no valid sequence, or an entry makes no sense.
        TruncatedDiskFileError: the file is shorter than the log requires.
        UnsupportedDiskFileError: the log is longer, or does more, than this reader takes.
    """
    if header.log_id is None:
        return source
    if not header.log_bytes:
        raise CorruptDiskFileError("log", "the header names a log without length")
    if header.log_bytes > MOST_LOG_BYTES:
        raise UnsupportedDiskFileError(f"a log of {header.log_bytes} bytes to be replayed")
    log = read_exactly(source, header.log_offset, header.log_bytes, "log")
    entries = find_sequence(log, header.log_id.bytes_le)
    newest = entries[-1]
    if source.size_bytes < newest.flushed_file_bytes:
        raise TruncatedDiskFileError(
            "log", f"the file had {newest.flushed_file_bytes} bytes, now {source.size_bytes}"
        )
    if newest.last_file_bytes > MOST_FILE_BYTES:
        raise UnsupportedDiskFileError(f"a file of {newest.last_file_bytes} bytes")
    if sum(entry.descriptors for entry in entries) > _MOST_DESCRIPTORS:
        raise UnsupportedDiskFileError(f"a log with more than {_MOST_DESCRIPTORS} updates")
    overlay = _Overlay(source, max(source.size_bytes, newest.last_file_bytes))
    for entry in reversed(entries):
        content = _unwound(log, entry.offset, entry.length)
        for offset, length, page in reversed(list(_updates(entry, content))):
            if offset < REGION_TABLE_OFFSETS[0] or offset + length > overlay.size_bytes:
                raise CorruptDiskFileError("log", f"an update of {length} bytes at {offset}")
            overlay.put_under(offset, length, page)
    return overlay


def find_sequence(log: bytes, log_id: bytes) -> list[LogEntry]:
    """Return the active sequence from its tail to its head (2.3.2).

    Raises:
        CorruptDiskFileError: there is none.
    """
    finder = _Finder(log, log_id)
    best: list[LogEntry] = []
    start = 0
    while start < len(log):
        run = finder.run_from(start)
        if not run:
            start += LOG_SECTOR_BYTES
            continue
        places = [entry.offset for entry in run]
        start += sum(entry.length for entry in run)  # behind the log if the run went round its end
        is_newer = not best or run[-1].sequence > best[-1].sequence
        if is_newer and run[-1].tail in places:
            best = run[places.index(run[-1].tail) :]
    if not best:
        raise CorruptDiskFileError("log", "no valid sequence of entries")
    return best


class _Finder:
    """Parses entries, each place of the log once, and gives up where a log was made to be slow."""

    def __init__(self, log: bytes, log_id: bytes) -> None:
        self._log = log
        self._log_id = log_id
        self._found: dict[int, LogEntry | None] = {}
        self._hashed_bytes = 0

    def run_from(self, start: int) -> list[LogEntry]:
        run: list[LogEntry] = []
        offset, room = start, len(self._log)
        while entry := self._entry(offset):
            room -= entry.length
            if room < 0 or (run and entry.sequence != run[-1].sequence + 1):
                break
            run.append(entry)
            offset = entry.end % len(self._log)
        return run

    def _entry(self, offset: int) -> LogEntry | None:
        if offset not in self._found:
            self._found[offset] = self._parse(offset)
        return self._found[offset]

    def _parse(self, offset: int) -> LogEntry | None:
        (signature, found, length, tail, sequence, descriptors, _, log_id, flushed,
         last) = LOG_ENTRY.unpack_from(self._log, offset)  # fmt: skip
        if signature != LOG_ENTRY_SIGNATURE or log_id != self._log_id or not sequence:
            return None
        if not length or length % LOG_SECTOR_BYTES or length > len(self._log):
            return None
        if LOG_ENTRY.size + descriptors * LOG_DESCRIPTOR_BYTES > length:
            return None
        self._hashed_bytes += length
        if self._hashed_bytes > _MOST_PASSES * len(self._log):
            raise CorruptDiskFileError("log", "its entries overlap each other")
        if checksum(_unwound(self._log, offset, length)) != found:
            return None
        return LogEntry(
            offset=offset, tail=tail, sequence=sequence, descriptors=descriptors,
            flushed_file_bytes=flushed, last_file_bytes=last, length=length,
        )  # fmt: skip


def _unwound(log: bytes, offset: int, length: int) -> bytes:
    content = log[offset : offset + length]
    return content + log[: length - len(content)]


def _updates(entry: LogEntry, content: bytes) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (file offset, length, bytes or None for zeros) in the order of the entry."""
    after = LOG_ENTRY.size + entry.descriptors * LOG_DESCRIPTOR_BYTES
    data_at = -(-after // LOG_SECTOR_BYTES) * LOG_SECTOR_BYTES
    for number in range(entry.descriptors):
        at = LOG_ENTRY.size + number * LOG_DESCRIPTOR_BYTES
        signature = content[at : at + 4]
        length, page = LOG_SECTOR_BYTES, None
        if signature == LOG_ZERO_SIGNATURE:
            _, _, length, offset, sequence = LOG_ZERO.unpack_from(content, at)
        elif signature == LOG_DATA_SIGNATURE:
            _, trailing, leading, offset, sequence = LOG_DATA.unpack_from(content, at)
            page = leading + _data(entry, content, data_at) + trailing
            data_at += LOG_SECTOR_BYTES
        else:
            raise CorruptDiskFileError("log", f"descriptor {signature!r}")
        if sequence != entry.sequence or offset % LOG_SECTOR_BYTES or length % LOG_SECTOR_BYTES:
            raise CorruptDiskFileError("log", f"descriptor {number} of entry {entry.sequence}")
        yield offset, length, page


def _data(entry: LogEntry, content: bytes, at: int) -> bytes:
    if at + LOG_SECTOR_BYTES > len(content):
        raise CorruptDiskFileError("log", f"entry {entry.sequence} has too few data sectors")
    signature, high, data, low = LOG_DATA_SECTOR.unpack_from(content, at)
    if signature != LOG_DATA_SECTOR_SIGNATURE or high << 32 | low != entry.sequence:
        raise CorruptDiskFileError("log", f"a data sector of entry {entry.sequence}")
    return bytes(data)


class _Overlay:
    """A file with pages and zeroed ranges over it, built from the newest update to the oldest.

    A page hides the zeros below it; one that would lie under newer zeros is not kept.
    """

    def __init__(self, source: ByteSource, size_bytes: int) -> None:
        self._source = source
        self._size_bytes = size_bytes
        self._pages: dict[int, bytes] = {}
        self._starts: list[int] = []  # of zeroed ranges: sorted, apart
        self._ends: list[int] = []

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def put_under(self, offset: int, length: int, page: bytes | None) -> None:
        """Add an update that is older than all before."""
        if page is None:
            self._zero(offset, offset + length)
        elif not self._is_zeroed(offset):
            self._pages.setdefault(offset, page)

    def read_at(self, offset: int, length: int) -> bytes:
        length = max(0, min(length, self._size_bytes - offset))
        end = offset + length
        # What was flushed with the log but lies behind the end of the file reads as zeros.
        there = self._source.read_at(offset, max(0, min(length, self._source.size_bytes - offset)))
        buffer = bytearray(there) + bytes(length - len(there))
        for number in range(bisect_right(self._ends, offset), len(self._starts)):
            start, stop = max(offset, self._starts[number]), min(end, self._ends[number])
            if start >= stop:
                break
            buffer[start - offset : stop - offset] = bytes(stop - start)
        for at in self._pages_in(offset, end):
            page = self._pages[at]
            start, stop = max(offset, at), min(end, at + LOG_SECTOR_BYTES)
            buffer[start - offset : stop - offset] = page[start - at : stop - at]
        return bytes(buffer)

    def _pages_in(self, offset: int, end: int) -> list[int]:
        first = offset // LOG_SECTOR_BYTES * LOG_SECTOR_BYTES
        if (end - first) // LOG_SECTOR_BYTES > len(self._pages):
            return [at for at in self._pages if first <= at < end]
        return [at for at in range(first, end, LOG_SECTOR_BYTES) if at in self._pages]

    def _is_zeroed(self, offset: int) -> bool:
        number = bisect_right(self._starts, offset) - 1
        return number >= 0 and offset < self._ends[number]

    def _zero(self, start: int, end: int) -> None:
        if start == end:
            return
        first = bisect_left(self._ends, start)  # joins what overlaps or touches
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
