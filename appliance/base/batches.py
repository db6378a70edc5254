"""Cut a sequence into batches of bounded size, for calls that take many things at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def batches(
    items: Sequence[Item], size_of: Callable[[Item], int], most: int, *, count_most: int
) -> Iterator[Sequence[Item]]:
    """Yield all items in order, in slices whose sizes add up to `most` at the most.

    An item that is larger stands alone. No slice has more than `count_most` items.
    """
    first = total = 0
    for number, item in enumerate(items):
        size = size_of(item)
        if number > first and (total + size > most or number - first == count_most):
            yield items[first:number]
            first, total = number, 0
        total += size
    if first < len(items):
        yield items[first:]
