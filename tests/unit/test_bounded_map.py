"""Work over many items on a few threads: order, bounds, errors, no thread left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from appliance.base.bounded_map import bounded_map


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("bounded")]


def test_results_come_in_order_and_items_are_taken_as_needed() -> None:
    """A generator over many items is never more than the bound ahead of the results."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(1000):
            taken.append(item)
            yield item

    for number, result in enumerate(
        bounded_map(lambda item: item * 2, items(), workers=3, ahead=2, name="bounded")
    ):
        assert result == number * 2
        assert len(taken) <= number + 7
    assert threads() == []


def test_an_error_comes_in_its_turn_and_ends_the_rest() -> None:
    """Results before it are given, and nothing much is begun after it."""
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 5:
            raise ValueError("five")
        return item

    results = bounded_map(work, range(1000), workers=2, ahead=2, name="bounded")
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert max(begun) < 20
    assert threads() == []


def test_closing_early_leaves_no_thread() -> None:
    """Who stops taking results stops the work."""
    results = bounded_map(lambda item: item, range(1000), workers=2, name="bounded")
    next(results)
    results.close()
    assert threads() == []
