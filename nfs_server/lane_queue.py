"""The calls of one connection that wait for one pool of workers, and the batches being served.

Everything runs on the event loop but `_work`. A connection has a bounded number of batches on a
pool, so that one client's backlog leaves workers to the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from nfs_server.errors import XdrError
from nfs_server.nfs3 import Service, perform
from nfs_server.procedures_data import Range
from nfs_server.replay_cache import Key
from nfs_server.request import Request
from nfs_server.vfs import Buffer

BATCH_CALLS = 32
BATCH_BYTES = 4 << 20  # of writes that share a sync


@dataclass(frozen=True, slots=True)
class Pending:
    """A call on its way to a worker."""

    xid: int
    service: Service
    request: Request
    range: Range | None  # of a READ
    tree_id: int
    cost_bytes: int  # memory that it and its reply hold
    replay_key: Key | None


OnDone = Callable[[list[Pending], list[list[Buffer] | XdrError]], None]


class LaneQueue:
    def __init__(self, pool: Executor, batches: int, on_done: OnDone) -> None:
        self._pool = pool
        self._batches = batches
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Pending] = deque()
        self._running = 0

    @property
    def busy(self) -> bool:
        return bool(self._running or self._queue)

    def add(self, pending: Pending) -> None:
        """It waits for the next `dispatch`."""
        self._queue.append(pending)

    def dispatch(self) -> None:
        """Share the queue out over the batches that this connection may still start."""
        while self._queue and self._running < self._batches:
            fair = -(-len(self._queue) // (self._batches - self._running))
            self._running += 1
            self._pool.submit(self._work, self._batch(min(fair, BATCH_CALLS)))

    def clear(self) -> list[Pending]:
        """Take back what has not reached a worker."""
        dropped = list(self._queue)
        self._queue.clear()
        return dropped

    def _batch(self, most: int) -> list[Pending]:
        batch = [self._queue.popleft()]
        batch_bytes = batch[0].cost_bytes
        while self._queue and len(batch) < most:
            batch_bytes += self._queue[0].cost_bytes
            if batch_bytes > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    def _work(self, batch: list[Pending]) -> None:
        replies = perform([(each.service, each.request, each.range) for each in batch])
        self._loop.call_soon_threadsafe(self._finish, batch, replies)

    def _finish(self, batch: list[Pending], replies: list[list[Buffer] | XdrError]) -> None:
        self._running -= 1
        self._on_done(batch, replies)
