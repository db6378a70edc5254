"""How often an address may call: a token bucket each, bounded in number.

Event loop only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

_ADDRESSES_MAX = 4096


class RateLimit:
    def __init__(self, *, per_s: float, burst: int, now_s: Callable[[], float] = monotonic) -> None:
        self._per_s = per_s
        self._burst = burst
        self._now_s = now_s
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> bool:
        """Whether this call is within the limit."""
        now_s = self._now_s()
        level, at_s = self._buckets.pop(address, (float(self._burst), now_s))
        level = min(self._burst, level + (now_s - at_s) * self._per_s)
        allowed = level >= 1
        self._buckets[address] = (level - 1 if allowed else level, now_s)
        while len(self._buckets) > _ADDRESSES_MAX:
            self._buckets.popitem(last=False)
        return allowed
