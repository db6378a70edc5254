"""Wraps a blob store: counts its operations, fails the N-th, and shows blobs with a bit flipped."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from appliance.repository.blob_store.contract import BlobInfo, BlobStore, BlobWriter

CHANGING = frozenset({"create", "write", "commit", "put", "delete", "rename"})
READING = frozenset({"get", "get_range", "try_get_range", "size_bytes", "list"})


class FaultyStore:
    """`calls` counts by operation; those in `counted` are numbered from 0 across operations.

    Operations number `fail_at` and the next `times - 1` raise `error` and do nothing else.
    """

    def __init__(
        self,
        store: BlobStore,
        *,
        fail_at: int | None = None,
        error: Exception | None = None,
        times: int = 1,
        counted: Collection[str] = CHANGING | READING,
    ) -> None:
        self._store = store
        self._failing = range(fail_at, fail_at + times) if fail_at is not None else range(0)
        self._error = error or OSError("injected")
        self._counted = counted
        self._flips: dict[str, set[int]] = {}
        self._lock = threading.Lock()
        self.calls: Counter[str] = Counter()

    def flip_bit(self, name: str, bit: int) -> None:
        """From now on every read of blob `name` shows `bit` (counted from its start) inverted."""
        self._flips.setdefault(name, set()).symmetric_difference_update({bit})

    @property
    def counted_calls(self) -> int:
        """What the next counted operation would be numbered."""
        return sum(self.calls[operation] for operation in self._counted)

    def step(self, operation: str) -> None:
        """Count one operation; raise if it is one that shall fail."""
        with self._lock:
            number = self.counted_calls
            self.calls[operation] += 1
        if operation in self._counted and number in self._failing:
            raise self._error

    def create(self, name: str) -> BlobWriter:
        self.step("create")
        return _FaultyWriter(self, self._store.create(name))

    def put(self, name: str, data: bytes) -> None:
        self.step("put")
        self._store.put(name, data)

    def get(self, name: str, *, limit_bytes: int) -> bytes:
        self.step("get")
        return self._shown(name, 0, self._store.get(name, limit_bytes=limit_bytes))

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        self.step("get_range")
        return self._shown(name, offset, self._store.get_range(name, offset, length))

    def try_get_range(self, name: str, offset: int, length: int) -> bytes | None:
        self.step("try_get_range")
        data = self._store.try_get_range(name, offset, length)
        return None if data is None else self._shown(name, offset, data)

    def size_bytes(self, name: str) -> int:
        self.step("size_bytes")
        return self._store.size_bytes(name)

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        self.step("list")
        return self._store.list(prefix)

    def delete(self, name: str) -> None:
        self.step("delete")
        self._store.delete(name)

    def rename(self, name: str, new_name: str) -> None:
        self.step("rename")
        self._store.rename(name, new_name)

    def discard_unfinished(self, *, older_than_s: float) -> int:
        self.step("discard_unfinished")
        return self._store.discard_unfinished(older_than_s=older_than_s)

    def _shown(self, name: str, offset: int, data: bytes) -> bytes:
        flips = self._flips.get(name)
        if not flips:
            return data
        shown = bytearray(data)
        for bit in flips:
            if offset <= bit // 8 < offset + len(data):
                shown[bit // 8 - offset] ^= 1 << bit % 8
        return bytes(shown)


class _FaultyWriter:
    def __init__(self, store: FaultyStore, writer: BlobWriter) -> None:
        self._store = store
        self._writer = writer

    @property
    def name(self) -> str:
        return self._writer.name

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    def write(self, buffers: Sequence[bytes | memoryview]) -> None:
        self._store.step("write")
        self._writer.write(buffers)

    def commit(self) -> None:
        try:
            self._store.step("commit")
        except BaseException:
            self._writer.abort()
            raise
        self._writer.commit()

    def abort(self) -> None:
        self._writer.abort()
