"""A datastore: a named tree of files, of a kind, and the table of those a host has mounted.

A VMFS datastore is a local folder. An NFS datastore (`nas_datastore`) has an NFS client; it never
has a local path. Thread model: any thread; the table has a lock.
"""

from __future__ import annotations

import threading
from enum import StrEnum
from pathlib import Path

from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import FileMissingError, InvalidPathError, NoDatastoreError
from lab.esx.files import FileEntry, Files, LocalFiles, Space

_COPY_BYTES = 1 << 20


class DatastoreKind(StrEnum):
    VMFS = "VMFS"
    NFS = "NFS"


class LabDatastore:
    """Its bytes are in `folder`, unless a subclass has them elsewhere."""

    def __init__(
        self, name: str, folder: Path | None = None, kind: DatastoreKind = DatastoreKind.VMFS
    ) -> None:
        DatastorePath.parse(f"[{name}] ")  # refuses names no path could hold
        if (folder is None) is (kind is DatastoreKind.VMFS):
            raise ValueError("a VMFS datastore has a folder, and no other has")
        self.name = name
        self.kind = kind
        self._folder = LocalFiles(folder) if folder is not None else None

    @property
    def files(self) -> Files:
        """Where the bytes are. Raises HostError when they cannot be reached."""
        assert self._folder is not None
        return self._folder

    @property
    def accessible(self) -> bool:
        return True

    def space(self) -> Space:
        return self.files.space()

    def hurry(self) -> None:
        """The lab ends: wait for nothing that may not come."""

    def close(self) -> None:
        """Give back what leads to the bytes. Idempotent."""

    def path(self, relative: str = "") -> DatastorePath:
        """Raises InvalidPathError when `relative` would leave the datastore."""
        return DatastorePath(self.name, relative)

    def resolve(self, text: str) -> DatastorePath:
        """Parse a datastore path that must be of this datastore."""
        path = DatastorePath.parse(text)
        if path.datastore != self.name:
            raise InvalidPathError(f"{text!r} is not on datastore {self.name}")
        return path


class Datastores:
    """The datastores of one datacenter by name, with file operations on datastore paths."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_name: dict[str, LabDatastore] = {}

    def add(self, datastore: LabDatastore) -> None:
        with self._lock:
            if datastore.name in self._by_name:
                raise InvalidPathError(f"datastore {datastore.name} is there already")
            self._by_name[datastore.name] = datastore

    def remove(self, name: str) -> None:
        with self._lock:
            self._by_name.pop(name, None)

    def list(self) -> list[LabDatastore]:
        with self._lock:
            return list(self._by_name.values())

    def get(self, name: str) -> LabDatastore:
        """Raises NoDatastoreError."""
        with self._lock:
            datastore = self._by_name.get(name)
        if datastore is None:
            raise NoDatastoreError(f"there is no datastore {name!r}", name=name)
        return datastore

    def accessible(self, name: str) -> bool:
        """False, too, for a datastore that is not there."""
        with self._lock:
            datastore = self._by_name.get(name)
        return datastore is not None and datastore.accessible

    def hurry(self) -> None:
        for datastore in self.list():
            datastore.hurry()

    def close(self) -> None:
        """Close every datastore. Idempotent."""
        for datastore in self.list():
            datastore.close()

    def files_of(self, path: DatastorePath) -> Files:
        return self.get(path.datastore).files

    def stat(self, path: DatastorePath) -> FileEntry | None:
        return self.files_of(path).stat(path.path)

    def exists(self, path: DatastorePath) -> bool:
        return self.stat(path) is not None

    def read_text(self, path: DatastorePath, limit_bytes: int) -> str:
        """Raises FileMissingError; InvalidPathError for a file above the limit."""
        entry = self.stat(path)
        if entry is None or entry.is_folder:
            raise FileMissingError(f"{path} was not found", file=str(path))
        if entry.size_bytes > limit_bytes:
            raise InvalidPathError(f"{path} has {entry.size_bytes} bytes, which is no text file")
        data = self.files_of(path).read_at(path.path, 0, entry.size_bytes)
        return data.decode("utf-8", "replace")

    def write_text(self, path: DatastorePath, text: str) -> None:
        self.files_of(path).replace(path.path, text.encode())

    def delete_if_there(self, path: DatastorePath) -> None:
        if self.exists(path):
            self.files_of(path).delete(path.path)

    def make_folders(self, path: DatastorePath) -> None:
        """Make a folder and what it lies in; one that is there is fine."""
        if path.path and not self.exists(path):
            self.make_folders(path.folder)
            self.files_of(path).make_folder(path.path)

    def copy(self, source: DatastorePath, target: DatastorePath) -> int:
        """Copy a file's data without its holes; return the bytes moved. The target is new."""
        reader, writer = self.files_of(source), self.files_of(target)
        entry = reader.stat(source.path)
        if entry is None or entry.is_folder:
            raise FileMissingError(f"{source} was not found", file=str(source))
        writer.create(target.path, entry.size_bytes)
        moved = 0
        for start, length in reader.data_extents(source.path):
            for offset in range(start, start + length, _COPY_BYTES):
                count = min(_COPY_BYTES, start + length - offset)
                data = reader.read_at(source.path, offset, count)
                if data.count(0) < len(data):  # where holes are not told, zeros are taken for one
                    writer.write_at(target.path, offset, data)
                    moved += len(data)
        return moved
