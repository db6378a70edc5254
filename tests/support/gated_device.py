"""A disk whose reads or writes hang until they are let go, as one on failing storage does."""

from __future__ import annotations

import threading
from collections import Counter

from tests.support.memory_device import MemoryDevice


class GatedDevice(MemoryDevice):
    """While the gate "read" is closed nothing is at hand either: `try_read_at` gives None."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._turn = threading.Condition()
        self._closed: set[str] = set()
        self._begun: Counter[str] = Counter()

    def close_gate(self, name: str) -> None:
        with self._turn:
            self._closed.add(name)

    def open_gates(self) -> None:
        with self._turn:
            self._closed.clear()
            self._turn.notify_all()

    def calls(self, name: str) -> int:
        return self._begun[name]

    def wait_for(self, name: str, calls: int) -> None:
        """Return when so many calls are or were inside."""
        with self._turn:
            assert self._turn.wait_for(lambda: self._begun[name] >= calls, 20)

    def read_at(self, offset: int, length: int) -> bytes:
        self._pass("read")
        return super().read_at(offset, length)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        return None if "read" in self._closed else super().read_at(offset, length)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self._pass("write")
        super().write_at(offset, data)

    def _pass(self, name: str) -> None:
        with self._turn:
            self._begun[name] += 1
            self._turn.notify_all()
            self._turn.wait_for(lambda: name not in self._closed)
