"""Where the bytes of a disk file come from: a file on an SMB share, or one of this machine.

`BatchSource` is what a source over a network should be: it is asked for everything a read needs in
one call, so that the requests can be under way together, and puts it where it belongs.
`read_ranges` is the one way the library reads content; structures are read one at a time.

Thread model: sources are read from several threads at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self, runtime_checkable

from hyperv.vhdx.errors import ReadFailedError, TruncatedDiskFileError
from hyperv.vhdx.structures import KIB, MIB

JOINED_GAP_BYTES: Final = 32 * KIB  # reading over a gap costs less than a further request
MOST_AT_ONCE_BYTES: Final = 8 * MIB  # of one range made by joining
_MOST_BYTES: Final = 1 << 30  # one preadv moves at most 2 GiB - 4 KiB


class ByteSource(Protocol):
    @property
    def size_bytes(self) -> int: ...

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset + length), fewer only at the end of the file."""
        ...


@runtime_checkable
class BatchSource(ByteSource, Protocol):
    def read_many_into(self, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """Fill every buffer from its offset; all of it lies inside the file."""
        ...


@runtime_checkable
class DirectSource(ByteSource, Protocol):
    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from byte `offset`; return how much, less only at the end of the file."""
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A range of a file, and where its bytes go; `buffer` has the length of the range."""

    offset: int
    buffer: memoryview

    @property
    def end(self) -> int:
        return self.offset + len(self.buffer)


def read_exactly(source: ByteSource, offset: int, length: int, what: str) -> bytes:
    """Raises TruncatedDiskFileError: `what` does not lie wholly inside the file."""
    data = source.read_at(offset, length) if offset + length <= source.size_bytes else b""
    if len(data) != length:
        raise TruncatedDiskFileError(what, f"{length} bytes at {offset} end behind the file")
    return data


def read_ranges(source: ByteSource, wanted: Sequence[Wanted]) -> None:
    """Fill the buffers; ranges that are close together are read as one.

    Raises:
        TruncatedDiskFileError: a range does not lie wholly inside the file.
    """
    groups = _grouped(sorted(wanted, key=lambda each: each.offset))
    if isinstance(source, BatchSource):
        _read_batch(source, groups)
        return
    if isinstance(source, DirectSource):
        for alone in [group[0] for group in groups if len(group) == 1]:
            got = source.read_into(alone.offset, alone.buffer)
            _check_length(alone.offset, len(alone.buffer), got)
        groups = [group for group in groups if len(group) > 1]
    for group in groups:
        start, length = _range_of(group)
        content = source.read_at(start, length)
        _check_length(start, length, len(content))
        _scatter(group, memoryview(content))


def _read_batch(source: BatchSource, groups: Sequence[Sequence[Wanted]]) -> None:
    """What lies alone goes straight to its buffer, the rest through one of ours."""
    wanted: list[tuple[int, memoryview]] = []
    for group in groups:
        start, length = _range_of(group)
        _check_length(start, length, min(length, source.size_bytes - start))
        buffer = group[0].buffer if len(group) == 1 else memoryview(bytearray(length))
        wanted.append((start, buffer))
    source.read_many_into(wanted)
    for group, (_, buffer) in zip(groups, wanted, strict=True):
        if len(group) > 1:
            _scatter(group, buffer)


def _range_of(group: Sequence[Wanted]) -> tuple[int, int]:
    start = group[0].offset
    return start, max(each.end for each in group) - start


def _scatter(group: Sequence[Wanted], content: memoryview) -> None:
    start = group[0].offset
    for each in group:
        each.buffer[:] = content[each.offset - start : each.end - start]


def _check_length(start: int, length: int, got: int) -> None:
    if got != length:
        raise TruncatedDiskFileError("a block", f"{length} bytes at {start} end behind the file")


def _grouped(wanted: Sequence[Wanted]) -> list[list[Wanted]]:
    groups: list[list[Wanted]] = []
    for each in wanted:
        if (
            groups
            and each.offset - groups[-1][-1].end <= JOINED_GAP_BYTES
            and each.end - groups[-1][0].offset <= MOST_AT_ONCE_BYTES
        ):
            groups[-1].append(each)
        else:
            groups.append([each])
    return groups


class LocalFile:
    """A file of this machine; use it as a context manager or `close` it."""

    def __init__(self, path: Path) -> None:
        """Raises ReadFailedError: it cannot be opened."""
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise ReadFailedError(f"{path}: {error.strerror}") from error
        self._size_bytes = os.lseek(self._fd, 0, os.SEEK_END)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        return bytes(memoryview(buffer)[: self.read_into(offset, memoryview(buffer))])

    def read_into(self, offset: int, buffer: memoryview) -> int:
        done = 0
        try:
            while done < len(buffer) and (
                got := os.preadv(self._fd, [buffer[done : done + _MOST_BYTES]], offset + done)
            ):
                done += got
        except OSError as error:
            raise ReadFailedError(f"{self._path}: byte {offset}: {error.strerror}") from error
        return done

    def close(self) -> None:
        """Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
