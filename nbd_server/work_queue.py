"""The requests of one connection that wait for the backend, and the batches being worked on.

Everything runs on the event loop but `_work`, which runs on a worker thread and touches nothing
that changes. A connection has at most `jobs` batches on the shared pool, so that one client's
backlog leaves threads to the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from nbd_server.handshake import Session
from nbd_server.limits import Counters
from nbd_server.operations import Outcome, perform
from nbd_server.protocol import Command
from nbd_server.requests import Request

BATCH_REQUESTS = 32
BATCH_BYTES = 1 << 20
REQUEST_COST_BYTES = 4096  # bookkeeping of one request; bounds how many may be outstanding


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a connection shares with the others."""

    pool: Executor
    counters: Counters
    share_bytes: Callable[[], int]
    jobs: int  # batches of one connection on the pool at once
    linger_s: float  # for the client to take its last replies
    answered: Callable[[], None]  # replies have left


class WorkQueue:
    def __init__(
        self,
        session: Session,
        shared: Surroundings,
        on_done: Callable[[list[Outcome]], None],
    ) -> None:
        self._session = session
        self._shared = shared
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._queue: deque[Request] = deque()
        self._jobs = 0
        self.held_bytes = 0  # memory that what is outstanding holds or will hold

    @property
    def busy(self) -> bool:
        return bool(self._jobs or self._queue)

    def add(self, request: Request) -> int:
        """Take it on; return what it holds. It waits for the next `dispatch`."""
        cost = _cost_bytes(request)
        self.held_bytes += cost
        self._queue.append(request)
        return cost

    def dispatch(self) -> None:
        """Share the queue out over the jobs that this connection may still start."""
        while self._queue and self._jobs < self._shared.jobs:
            fair = -(-len(self._queue) // (self._shared.jobs - self._jobs))
            self._jobs += 1
            self._shared.pool.submit(self._work, self._batch(min(fair, BATCH_REQUESTS)))

    def clear(self) -> None:
        """Forget what has not reached a worker."""
        self._queue.clear()

    def _batch(self, most: int) -> list[Request]:
        batch = [self._queue.popleft()]
        batch_bytes = _cost_bytes(batch[0])
        while self._queue and len(batch) < most:
            batch_bytes += _cost_bytes(self._queue[0])
            if batch_bytes > BATCH_BYTES:
                break
            batch.append(self._queue.popleft())
        return batch

    def _work(self, batch: list[Request]) -> None:
        outcomes = perform(batch, self._session)
        self._loop.call_soon_threadsafe(self._finish, outcomes)

    def _finish(self, outcomes: list[Outcome]) -> None:
        self._jobs -= 1
        counters = self._shared.counters
        for request, _, failure in outcomes:
            self.held_bytes -= _cost_bytes(request)
            if failure is not None:
                continue
            if request.command == Command.READ:
                counters.read_bytes += request.length
            elif request.command == Command.WRITE:
                counters.written_bytes += request.length
        self._on_done(outcomes)


def _cost_bytes(request: Request) -> int:
    carried = request.length if request.command == Command.READ else len(request.payload)
    return REQUEST_COST_BYTES + carried
