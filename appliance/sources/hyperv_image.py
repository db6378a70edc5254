"""A VHDX or VHD file of this machine as a `BlockReader`, read by our own reader (`hyperv.vhdx`).

The log of a file that was not closed is replayed in memory; sectors that no file holds are holes. A
differencing file is opened only when external files are allowed, and each parent is looked for by
its name in the folder of the file that needs it: paths in the file come from whoever wrote it.

Thread model: any number of threads, as in `BlockReader`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from appliance.base.errors import ApplianceError, OutOfRangeError
from appliance.blocks.extents import ExtentKind, MappedExtent
from appliance.sources.errors import (
    ExternalFileError,
    ImageFormatError,
    SourceReadError,
    SourceShrankError,
)
from hyperv.vhdx.errors import (
    DiskFileError,
    OutOfDiskError,
    ParentMissingError,
    ReadFailedError,
    TruncatedDiskFileError,
)
from hyperv.vhdx.parent_reference import ParentReference
from hyperv.vhdx.reader import open_disk_file
from hyperv.vhdx.source import LocalFile


class HypervImageReader:
    def __init__(self, path: Path, *, allow_external: bool) -> None:
        """Raises: ImageFormatError, ExternalFileError, SourceReadError."""
        self._path = path
        self._files = ExitStack()
        newest = path

        def find_parent(reference: ParentReference) -> LocalFile | None:
            nonlocal newest
            parent = newest.with_name(reference.file_name) if reference.file_name else None
            if not allow_external or parent is None or not parent.is_file():
                return None
            newest = parent
            return self._files.enter_context(LocalFile(parent))

        try:
            with _translated(path):
                source = self._files.enter_context(LocalFile(path))
                self._disk = open_disk_file(source, find_parent)
        except ApplianceError:
            self.close()
            raise

    @property
    def size_bytes(self) -> int:
        return self._disk.size_bytes

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_at(self, offset: int, length: int) -> bytes:
        with _reading(self._path):
            return self._disk.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with _reading(self._path):
            self._disk.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        with _translated(self._path):
            return self._disk.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        with _reading(self._path):
            found = self._disk.map_extents(offset, length)
        return [
            MappedExtent(extent.offset, extent.length, ExtentKind(extent.kind.value))
            for extent in found
        ]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """When the file was opened, all that it holds lay inside it."""
    with _translated(path):
        try:
            yield
        except TruncatedDiskFileError as error:
            raise SourceShrankError(f"{path}: {error}") from error


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OutOfDiskError as error:
        raise OutOfRangeError(error.offset, error.length, error.size_bytes) from error
    except ParentMissingError as error:
        raise ExternalFileError(f"{path}: {error}") from error
    except ReadFailedError as error:
        raise SourceReadError(str(error)) from error
    except DiskFileError as error:
        raise ImageFormatError(f"{path}: {error}") from error
