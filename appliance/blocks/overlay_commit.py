"""Group commit: concurrent flushes share one fsync.

A flush must be covered by a commit that *started* after the flush was called. So a caller joins
the next round; when no round runs, one caller of that round leads it and the others wait for its
outcome.

Thread model: `run` may be called from any number of threads; at most one `commit` runs at a time,
with no lock held.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class _Round:
    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error: BaseException | None = None


class GroupCommit:
    def __init__(self, commit: Callable[[], None]) -> None:
        self._commit = commit
        self._turn = threading.Condition()
        self._running = False
        self._next = _Round()

    def run(self) -> None:
        """Return once a commit that started after this call succeeded; raise what it raised."""
        with self._turn:
            joined = self._next
            while self._running and not joined.done:
                self._turn.wait()
            leads = not joined.done
            if leads:
                self._running = True
                self._next = _Round()
        if leads:
            self._lead(joined)
        elif joined.error is not None:
            raise joined.error

    def _lead(self, joined: _Round) -> None:
        try:
            self._commit()
        except BaseException as error:
            joined.error = error
            raise
        finally:
            with self._turn:
                joined.done = True
                self._running = False
                self._turn.notify_all()
