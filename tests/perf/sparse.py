"""Sparse files: where their data is, copies that stay sparse, and warming the page cache."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from tests.perf import programs

_READ_BYTES = 1 << 20


def data_extents(fd: int) -> Iterator[tuple[int, int]]:
    """Half-open [start, end) of each run of data, in order."""
    position, size = 0, os.fstat(fd).st_size
    while position < size:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, position


def data_bytes(*files: Path) -> int:
    total = 0
    for path in files:
        with path.open("rb") as file:
            total += sum(end - start for start, end in data_extents(file.fileno()))
    return total


def warm(*files: Path) -> None:
    """Read all data once, so that every program finds it in the page cache."""
    buffer = memoryview(bytearray(_READ_BYTES))
    for path in files:
        with path.open("rb", buffering=0) as file:
            for start, end in data_extents(file.fileno()):
                for offset in range(start, end, _READ_BYTES):
                    os.preadv(file.fileno(), [buffer[: min(_READ_BYTES, end - offset)]], offset)


def copy(source: Path, target: Path, size_bytes: int | None = None) -> None:
    """Copy with holes kept; `size_bytes` may lengthen the copy by a hole."""
    programs.run(["cp", "--sparse=always", source, target])
    if size_bytes is not None:
        os.truncate(target, size_bytes)


def swap_in(source: Path, path: Path) -> None:
    """Make `path` a name of the file `source`, at once, without copying."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.hardlink_to(source)
    temporary.replace(path)
