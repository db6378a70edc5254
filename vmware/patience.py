"""How long to keep at it: pauses that end at a cancel, and the one retry loop of this library.

A `Patience` goes along with calls that may have to wait or repeat. Tests give it a `wait` that does
not sleep. What must happen even after a cancel (cleaning up) goes on with `unstoppable()`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from vmware.errors import (
    BusyError,
    CancelledError,
    SessionLostError,
    TransportError,
    UnreachableError,
    VsphereError,
)

T = TypeVar("T")

PASSING: tuple[type[VsphereError], ...] = (
    BusyError,
    UnreachableError,
    SessionLostError,
    TransportError,
)
"""What may go away by itself soon; others that are `retryable` have had their time already."""

_SLICE_S = 1.0  # a cancel is noticed within this time
_LONGEST_PAUSE_S = 60.0


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    cancelled: Callable[[], bool] = _never
    wait: Callable[[float], None] = time.sleep

    def check(self) -> None:
        """Raises CancelledError once the caller wants to stop."""
        if self.cancelled():
            raise CancelledError("cancelled")

    def pause(self, seconds: float) -> None:
        """Wait, in slices. Raises CancelledError."""
        self.check()
        while seconds > 0:
            self.wait(min(seconds, _SLICE_S))
            seconds -= _SLICE_S
            self.check()

    def unstoppable(self) -> Patience:
        return replace(self, cancelled=_never)

    def retry(
        self,
        call: Callable[[], T],
        *,
        on: tuple[type[VsphereError], ...] = PASSING,
        tries: int = 4,
        first_pause_s: float = 2.0,
    ) -> T:
        """Return what `call` returns; repeat it after the errors `on`, waiting ever longer.

        Raises: what the last try raised, or any other error at once; CancelledError.
        """
        pause_s = first_pause_s
        for _ in range(tries - 1):
            self.check()
            try:
                return call()
            except on:
                self.pause(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        self.check()
        return call()
