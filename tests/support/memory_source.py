"""A file in memory as a byte source; it counts what was asked of it."""

from __future__ import annotations

from collections.abc import Sequence


class MemorySource:
    def __init__(self, content: bytes) -> None:
        self._content = content
        self.reads: list[tuple[int, int]] = []

    @property
    def size_bytes(self) -> int:
        return len(self._content)

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads.append((offset, length))
        return self._content[offset : offset + length]


class BatchMemorySource(MemorySource):
    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.batches: list[Sequence[tuple[int, int]]] = []

    def read_many_into(self, wanted: Sequence[tuple[int, memoryview]]) -> None:
        self.batches.append([(offset, len(buffer)) for offset, buffer in wanted])
        for offset, buffer in wanted:
            buffer[:] = self.read_at(offset, len(buffer))
