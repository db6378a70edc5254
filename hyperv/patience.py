"""How long to keep at it: deadlines and pauses that end at a cancel.

Tests give it a `wait` and a clock that do not sleep. What must happen even after a cancel (cleaning
up) goes on with `unstoppable()`. Thread model: values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hyperv.errors import CancelledError, DeadlineError

_SLICE_S = 1.0  # a cancel is noticed within this time
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    is_cancelled: Callable[[], bool] = lambda: False
    wait: Callable[[float], None] = time.sleep
    clock_s: Callable[[], float] = time.monotonic

    def check(self) -> None:
        """Raises CancelledError once the caller wants to stop."""
        if self.is_cancelled():
            raise CancelledError("cancelled")

    def pause(self, seconds: float) -> None:
        """Wait, in slices. Raises CancelledError."""
        self.check()
        left_s = seconds
        while left_s > 0:
            self.wait(min(left_s, _SLICE_S))
            left_s -= _SLICE_S
            self.check()

    def looks(self, deadline_s: float, what: str) -> Iterator[None]:
        """Yield for one look after the other, with ever longer pauses between them.

        Raises: DeadlineError: `deadline_s` has passed; CancelledError.
        """
        end_s = self.clock_s() + deadline_s
        pause_s = _FIRST_PAUSE_S
        while True:
            self.check()
            yield
            if self.clock_s() >= end_s:
                raise DeadlineError(f"{what} took longer than {deadline_s:.0f} s")
            self.pause(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)

    def unstoppable(self) -> Patience:
        return replace(self, is_cancelled=lambda: False)
