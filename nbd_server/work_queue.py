"""The requests of one connection that wait for the backend, and the batches being worked on.

There are two lanes: reads that may be near at hand go to a few threads that decode, one batch at
once; what waits for storage (reads that were not near, writes, flushes) goes to more threads. A
connection has at most `jobs` batches there, so that one client's backlog leaves threads to others.

Everything runs on the event loop but `_work` and `_work_near`, which run on worker threads and
touch nothing that changes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from nbd_server.handshake import Session
from nbd_server.limits import Counters
from nbd_server.operations import Outcome, perform, read_near
from nbd_server.protocol import Command
from nbd_server.requests import Request

BATCH_REQUESTS = 32
BATCH_BYTES = 1 << 20
REQUEST_COST_BYTES = 4096  # bookkeeping of one request; bounds how many may be outstanding


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a connection shares with the others."""

    pool: Executor  # waits for storage
    near_pool: Executor  # as many threads as processors, for reads that need not wait
    counters: Counters
    share_bytes: Callable[[], int]
    jobs: int  # batches of one connection on the pool at once
    linger_s: float  # for the client to take its last replies
    answered: Callable[[], None]  # replies have left


class _Lane:
    """Requests for one of the pools, and how many batches of them are being worked on there."""

    def __init__(self, jobs_most: int, submit: Callable[[list[Request]], object]) -> None:
        self.queue: deque[Request] = deque()
        self.jobs = 0
        self._jobs_most = jobs_most
        self._submit = submit

    @property
    def busy(self) -> bool:
        return bool(self.jobs or self.queue)

    def dispatch(self) -> None:
        """Share the queue out over the jobs that may still be started."""
        while self.queue and self.jobs < self._jobs_most:
            fair = -(-len(self.queue) // (self._jobs_most - self.jobs))
            self.jobs += 1
            self._submit(self._batch(min(fair, BATCH_REQUESTS)))

    def _batch(self, most: int) -> list[Request]:
        batch = [self.queue.popleft()]
        batch_bytes = _cost_bytes(batch[0])
        while self.queue and len(batch) < most:
            batch_bytes += _cost_bytes(self.queue[0])
            if batch_bytes > BATCH_BYTES:
                break
            batch.append(self.queue.popleft())
        return batch


class WorkQueue:
    def __init__(
        self,
        session: Session,
        shared: Surroundings,
        on_done: Callable[[list[Outcome]], None],
    ) -> None:
        self._session = session
        self._counters = shared.counters
        self._on_done = on_done
        self._loop = asyncio.get_running_loop()
        self._reads_near = session.export.backend.reads_near
        # One near job at once: the larger its batch, the less it costs, and it uses a processor.
        self._near = _Lane(1, lambda batch: shared.near_pool.submit(self._work_near, batch))
        self._storage = _Lane(shared.jobs, lambda batch: shared.pool.submit(self._work, batch))
        self.held_bytes = 0  # memory that what is outstanding holds or will hold

    @property
    def busy(self) -> bool:
        return self._near.busy or self._storage.busy

    def add(self, request: Request) -> int:
        """Take it on; return what it holds. It waits for the next `dispatch`."""
        cost = _cost_bytes(request)
        self.held_bytes += cost
        near = self._reads_near and request.command == Command.READ
        (self._near if near else self._storage).queue.append(request)
        return cost

    def dispatch(self) -> None:
        self._near.dispatch()
        self._storage.dispatch()

    def clear(self) -> None:
        """Forget what has not reached a worker."""
        self._near.queue.clear()
        self._storage.queue.clear()

    def _work_near(self, batch: list[Request]) -> None:
        outcomes, left = read_near(batch, self._session)
        self._loop.call_soon_threadsafe(self._finish, self._near, outcomes, left)

    def _work(self, batch: list[Request]) -> None:
        outcomes = perform(batch, self._session)
        self._loop.call_soon_threadsafe(self._finish, self._storage, outcomes, [])

    def _finish(self, lane: _Lane, outcomes: list[Outcome], left: list[Request]) -> None:
        """`left`: what was not near goes on to the threads that may wait for storage."""
        lane.jobs -= 1
        self._storage.queue += left
        for request, _, failure in outcomes:
            self.held_bytes -= _cost_bytes(request)
            if failure is not None:
                continue
            if request.command == Command.READ:
                self._counters.read_bytes += request.length
            elif request.command == Command.WRITE:
                self._counters.written_bytes += request.length
        self._on_done(outcomes)


def _cost_bytes(request: Request) -> int:
    carried = request.length if request.command == Command.READ else len(request.payload)
    return REQUEST_COST_BYTES + carried
