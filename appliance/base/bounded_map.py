"""Run a function over many items on a few threads, results in order, memory bounded.

The data paths use it: segments of a disk, packs of a check. The work releases the GIL; the items
may be a generator over millions, of which only a few are ever in flight.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items per worker, so that taking results in order never starves one


def bounded_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    workers: int,
    name: str,
    ahead: int = _AHEAD,
) -> Generator[Result]:
    """Yield `function(item)` in the order of `items`; at most `workers * ahead` are in flight.

    The first error of an item, or of `items`, is raised in its turn; what was not begun by then
    is not begun. Every thread has ended when the iteration has, also when it is closed early.
    """
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= workers * ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
