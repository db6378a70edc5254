"""The serial line of a guest as text: kept in a file and in memory, waited upon by pattern.

Bounded: the last `LINES_MAX` lines stay in memory, a line is cut at `LINE_BYTES_MAX`.
Thread model: `feed` is called by the keeper of the machine, everything else by any thread.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

LINES_MAX = 2000
LINE_BYTES_MAX = 4096


class Console:
    def __init__(self, log_path: Path, on_line: Callable[[str], None]) -> None:
        self._log = log_path.open("ab", buffering=0)
        self._on_line = on_line
        self._state = threading.Condition()
        self._partial = bytearray()
        self._lines: deque[tuple[int, str]] = deque(maxlen=LINES_MAX)
        self._count = 0

    @property
    def mark(self) -> int:
        """A place in the stream of lines, for `wait_line`."""
        with self._state:
            return self._count

    def feed(self, data: bytes) -> None:
        self._log.write(data)
        self._partial += data
        *lines, rest = self._partial.split(b"\n")
        self._partial = bytearray(rest[-LINE_BYTES_MAX:])
        for raw in lines:
            line = bytes(raw[-LINE_BYTES_MAX:]).decode("utf-8", "replace").rstrip("\r")
            with self._state:
                self._count += 1
                self._lines.append((self._count, line))
                self._state.notify_all()
            self._on_line(line)

    def wait_line(self, pattern: str, *, since: int, timeout_s: float) -> re.Match[str] | None:
        """The first line after `since` in which the pattern is found; None at the time's end."""
        wanted = re.compile(pattern)

        def find() -> re.Match[str] | None:
            for number, line in self._lines:
                if number > since and (match := wanted.search(line)):
                    return match
            return None

        with self._state:
            self._state.wait_for(lambda: find() is not None, timeout_s)
            return find()

    def close(self) -> None:
        self._log.close()
