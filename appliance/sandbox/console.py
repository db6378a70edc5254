"""The serial line of a sandbox machine: a bounded log file and a bounded window of recent lines.

Everything here comes from the guest, so everything is bounded: a line is cut at `LINE_BYTES_MAX`,
the window keeps `LINES_MAX` lines, the file stops at `LOG_BYTES_MAX` (the window goes on). Lines
are decoded leniently and never interpreted beyond matching.
Thread model: one thread feeds, any number wait or read.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from pathlib import Path

from appliance.base.clock import Clock

LINE_BYTES_MAX = 4096
LINES_MAX = 2000
LOG_BYTES_MAX = 4 << 20
_LOG_CUT = b"\n[serial log cut: limit reached]\n"


class LineCursor:
    """A reader's place in the console: each complete line is offered to it once."""

    def __init__(self) -> None:
        self.next_line = 0


class Console:
    def __init__(self, log_path: Path, clock: Clock) -> None:
        self._clock = clock
        self._log = log_path.open("wb", buffering=0)
        self._log_bytes = 0
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._line_count = 0
        self._partial = bytearray()
        self._closed = False
        self._changed = threading.Condition()
        self.first_byte_at_s: float | None = None  # on the clock's monotonic scale

    def feed(self, data: bytes) -> None:
        if not data:
            return
        with self._changed:
            if self.first_byte_at_s is None:
                self.first_byte_at_s = self._clock.monotonic_s()
            self._write_log(data)
            *complete, rest = data.split(b"\n")
            for piece in complete:
                self._append_partial(piece)
                self._lines.append(self._partial_text())
                self._line_count += 1
                self._partial.clear()
            self._append_partial(rest)
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come; waiters return. Idempotent."""
        with self._changed:
            self._closed = True
            self._log.close()
            self._changed.notify_all()

    @property
    def lines(self) -> list[str]:
        """The recent complete lines, oldest first, without line ends."""
        with self._changed:
            return list(self._lines)

    def search(
        self, pattern: re.Pattern[str], cursor: LineCursor, *, unfinished: bool = False
    ) -> re.Match[str] | None:
        """Look at the complete lines behind `cursor`; with `unfinished` also at the begun one.

        A login prompt has no line end; but `\\d+$` matches the first digits of a number whose
        rest is still to come, so only ask for it where that does no harm. Moves the cursor past a
        matching line, or past all complete ones. Lines that left the window unseen are skipped.
        """
        with self._changed:
            oldest = self._line_count - len(self._lines)
            fresh = list(self._lines)[max(cursor.next_line - oldest, 0) :]
            first_number = max(cursor.next_line, oldest)
            begun = self._partial_text() if unfinished else ""
        for number, line in enumerate(fresh, first_number):
            cursor.next_line = number + 1
            if match := pattern.search(line):
                return match
        return pattern.search(begun) if begun else None

    def wait_for(
        self, pattern: re.Pattern[str], timeout_s: float, cursor: LineCursor | None = None
    ) -> re.Match[str] | None:
        """Block until a complete line matches; None when time is over or the machine has ended."""
        cursor = cursor or LineCursor()
        deadline_s = self._clock.monotonic_s() + timeout_s
        while True:
            with self._changed:
                seen = (self._line_count, self._closed)
            if match := self.search(pattern, cursor):
                return match
            with self._changed:
                if seen == (self._line_count, self._closed):
                    remaining_s = deadline_s - self._clock.monotonic_s()
                    if self._closed or remaining_s <= 0:
                        return None
                    self._changed.wait(remaining_s)

    def _append_partial(self, piece: bytes) -> None:
        self._partial += piece[: LINE_BYTES_MAX - len(self._partial)]

    def _partial_text(self) -> str:
        return self._partial.decode("utf-8", "replace").rstrip("\r")

    def _write_log(self, data: bytes) -> None:
        """A full disk ends the log, not the machine: the window goes on without it."""
        if self._closed or self._log_bytes >= LOG_BYTES_MAX:
            return
        piece = data[: LOG_BYTES_MAX - self._log_bytes]
        self._log_bytes += len(piece)
        try:
            self._log.write(piece)
            if self._log_bytes >= LOG_BYTES_MAX:
                self._log.write(_LOG_CUT)
        except OSError:
            self._log_bytes = LOG_BYTES_MAX
