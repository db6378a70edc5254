"""How many calls of each tree are with the workers, so that a tree can be taken away in peace.

Event loop only.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict


class InFlight:
    def __init__(self) -> None:
        self._calls: Counter[int] = Counter()
        self._waiting: defaultdict[int, list[asyncio.Event]] = defaultdict(list)

    def begin(self, tree_id: int) -> None:
        self._calls[tree_id] += 1

    def end(self, tree_id: int) -> None:
        self._calls[tree_id] -= 1
        if not self._calls[tree_id]:
            del self._calls[tree_id]
            for event in self._waiting.pop(tree_id, []):
                event.set()

    async def ended(self, tree_id: int) -> None:
        """Return when no call of the tree is with the workers. New ones are the caller's affair."""
        while self._calls[tree_id]:
            event = asyncio.Event()
            self._waiting[tree_id].append(event)
            await event.wait()
