"""`Files` over an NFS export: paths are looked up name by name at every call, nothing is cached.

Changes are on the server's disk when a method returns. A listing asks for each entry's attributes.
Thread model: any thread.
"""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Iterator
from typing import Any

from lab.esx.errors import FileFaultError, FileMissingError, FileThereError, HostError
from lab.esx.files import FileEntry, Space
from lab.esx.nfs_client import Attributes, Found, Kind, NfsClient


class NfsFiles:
    """`server` and `remote_path` are what QEMU is told; it has connections of its own."""

    def __init__(
        self, client: NfsClient, server: str, remote_path: str, *, read_only: bool = False
    ) -> None:
        self._client = client
        self._server = server
        self._remote_path = remote_path
        self._read_only = read_only

    def list(self, folder: str) -> list[FileEntry]:
        handle = self._need(folder).handle
        found = []
        for name in sorted(entry.name for entry in self._client.list(handle)):
            one = self._client.lookup(handle, name)
            if one is not None:  # not removed meanwhile
                found.append(_entry(name, one.attributes))
        return found

    def stat(self, path: str) -> FileEntry | None:
        found = self.find(path)
        return _entry(posixpath.basename(path), found.attributes) if found is not None else None

    def fileid(self, path: str) -> int:
        return self._need(path).attributes.fileid

    def read_at(self, path: str, offset: int, length: int) -> bytes:
        handle = self._need(path).handle
        parts, end = [], False
        while length and not end:
            data, end = self._client.read(handle, offset, length)
            parts.append(data)
            offset, length = offset + len(data), length - len(data)
        return b"".join(parts)

    def write_at(self, path: str, offset: int, data: bytes | memoryview) -> None:
        self._refuse_read_only()
        self._write(self._need(path).handle, offset, data)

    def create(self, path: str, size_bytes: int = 0) -> None:
        self._refuse_read_only()
        folder, name = self._place(path)
        with _named(path):
            made = self._client.create(folder, name)
        if size_bytes:
            try:
                self._client.resize(made.handle, size_bytes)
            except HostError:
                self._client.remove(folder, name)
                raise

    def create_with(self, path: str, data: bytes) -> None:
        """Exclusively. Raises FileThereError."""
        self.create(path)
        self.write_at(path, 0, data)

    def resize(self, path: str, size_bytes: int) -> None:
        self._refuse_read_only()
        self._client.resize(self._need(path).handle, size_bytes)

    def replace(self, path: str, data: bytes) -> None:
        self._refuse_read_only()
        folder, name = self._place(path)
        temp = f"{name}~"
        with contextlib.suppress(FileMissingError):  # what a host that died has left
            self._client.remove(folder, temp)
        made = self._client.create(folder, temp)
        try:
            self._write(made.handle, 0, data)
            self._client.rename(folder, temp, folder, name)
        except HostError:
            with contextlib.suppress(HostError):
                self._client.remove(folder, temp)
            raise

    def rename(self, old: str, new: str) -> None:
        self._refuse_read_only()
        if self.find(new) is not None:
            raise FileThereError(f"{new} is there already")
        with _named(old):
            self._client.rename(*self._place(old), *self._place(new))

    def delete(self, path: str) -> None:
        self._refuse_read_only()
        kind = self._need(path).attributes.kind
        remove = self._client.remove_folder if kind == Kind.FOLDER else self._client.remove
        with _named(path):
            remove(*self._place(path))

    def make_folder(self, path: str) -> None:
        self._refuse_read_only()
        with _named(path):
            self._client.make_folder(*self._place(path))

    def data_extents(self, path: str) -> Iterator[tuple[int, int]]:
        attributes = self._need(path).attributes
        if attributes.size_bytes and attributes.used_bytes:
            yield 0, attributes.size_bytes

    def space(self, *, timeout_s: float | None = None) -> Space:
        capacity, free = self._client.space(timeout_s=timeout_s)
        return Space(capacity_bytes=capacity, free_bytes=free)

    def block_node(self, path: str) -> dict[str, Any]:
        return {
            "driver": "nfs",
            "server": {"type": "inet", "host": self._server},
            "path": posixpath.join(self._remote_path, path),
            "user": 0,
            "group": 0,
            # Said here, it does not follow its parent's: QEMU 7.2 cannot make a node writable again
            # that was not, which it wants for a merge.
            "read-only": False,
        }

    def find(self, path: str) -> Found | None:
        """What is at a path; None when nothing is."""
        client = self._client
        if not path:
            return Found(client.root, client.get_attributes(client.root))
        found: Found | None = None
        handle = client.root
        for name in path.split("/"):
            found = client.lookup(handle, name)
            if found is None:
                return None
            handle = found.handle
        return found

    def _need(self, path: str) -> Found:
        found = self.find(path)
        if found is None:
            raise FileMissingError(f"{path} was not found")
        return found

    def _place(self, path: str) -> tuple[bytes, str]:
        folder, name = posixpath.split(path)
        return self._need(folder).handle, name

    def _write(self, handle: bytes, offset: int, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            count = self._client.write(handle, offset, view)
            view, offset = view[count:], offset + count

    def _refuse_read_only(self) -> None:
        if self._read_only:
            raise FileFaultError("the datastore is mounted read-only")


def _entry(name: str, attributes: Attributes) -> FileEntry:
    is_folder = attributes.kind == Kind.FOLDER
    return FileEntry(
        name=name,
        is_folder=is_folder,
        size_bytes=0 if is_folder else attributes.size_bytes,
        allocated_bytes=0 if is_folder else attributes.used_bytes,
        modified_at_s=attributes.modified_at_s,
    )


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Errors of a procedure with the path that they are about."""
    try:
        yield
    except (FileMissingError, FileThereError) as error:
        raise type(error)(f"{path}: {error}") from error
