"""How often and how long apart a failed step is tried again, driven by `retryable` of its error."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from appliance.base.errors import ApplianceError
from appliance.base.run_context import CancelToken

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Waits grow by `factor` up to `most_s`, each spread by a quarter so that many do not meet."""

    attempts: int = 5
    first_s: float = 2.0
    factor: float = 3.0
    most_s: float = 60.0
    spread: Callable[[], float] = field(default=random.random)

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after that many failures, at least 1."""
        whole = min(self.first_s * self.factor ** (failures - 1), self.most_s)
        return whole * (0.75 + 0.5 * self.spread())

    def run(
        self,
        step: Callable[[], Result],
        cancel: CancelToken,
        on_failure: Callable[[ApplianceError], None] = lambda error: None,
    ) -> Result:
        """Return what `step` returns; repeat it while its error says that this may help.

        `on_failure` hears of each failure that is followed by another attempt.

        Raises: the error of the last attempt, or one that is not retryable; CancelledError.
        """
        for failures in range(1, self.attempts + 1):
            cancel.check()
            try:
                return step()
            except ApplianceError as error:
                if not error.retryable or failures == self.attempts:
                    raise
                on_failure(error)
                cancel.wait(self.wait_s(failures))
        raise AssertionError("attempts is at least 1")
