"""A blob store in a dictionary: the model that the real ones are compared with."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from appliance.base.errors import StorageError
from appliance.repository.blob_store.contract import BlobExistsError, BlobInfo, BlobNotFoundError
from appliance.repository.blob_store.names import check_name


class MemoryWriter:
    def __init__(self, store: MemoryStore, name: str) -> None:
        self._store = store
        self._name = name
        self._data: bytearray | None = bytearray()
        self._size_bytes = 0

    @property
    def name(self) -> str:
        return self._name

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        data = self._open_data()
        for buffer in buffers:
            data += buffer
        self._size_bytes = len(data)

    def commit(self) -> None:
        data = self._open_data()
        self._data = None
        self._store.add(self._name, bytes(data))

    def abort(self) -> None:
        self._data = None

    def _open_data(self) -> bytearray:
        if self._data is None:
            raise ValueError(f"blob {self._name} is committed or aborted")
        return self._data


class MemoryStore:
    """`blobs` is open to tests, which may damage what lies in it."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def add(self, name: str, data: bytes) -> None:
        with self._lock:
            if name in self.blobs:
                raise BlobExistsError(name)
            self.blobs[name] = data

    def create(self, name: str) -> MemoryWriter:
        check_name(name)
        return MemoryWriter(self, name)

    def put(self, name: str, data: bytes) -> None:
        check_name(name)
        self.add(name, bytes(data))

    def get(self, name: str, *, limit_bytes: int) -> bytes:
        data = self._find(name)
        if len(data) > limit_bytes:
            raise StorageError(f"{name}: {len(data)} bytes where {limit_bytes} may be")
        return data

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        return self._find(name)[offset : offset + length]

    def try_get_range(self, name: str, offset: int, length: int) -> bytes | None:
        return self.get_range(name, offset, length)

    def size_bytes(self, name: str) -> int:
        return len(self._find(name))

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        check_name(prefix)
        with self._lock:
            found = sorted(item for item in self.blobs.items() if item[0].startswith(f"{prefix}/"))
        return iter([BlobInfo(name, len(data)) for name, data in found])

    def delete(self, name: str) -> None:
        check_name(name)
        with self._lock:
            self.blobs.pop(name, None)

    def rename(self, name: str, new_name: str) -> None:
        check_name(new_name)
        self.add(new_name, self._find(name))
        self.delete(name)

    def discard_unfinished(self, *, older_than_s: float) -> int:
        return 0  # what dead writers left behind died with them

    def _find(self, name: str) -> bytes:
        check_name(name)
        try:
            return self.blobs[name]
        except KeyError:
            raise BlobNotFoundError(name) from None
