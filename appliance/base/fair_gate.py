"""Bounded shares of several things at once, handed out in order: who waits longest goes first.

Parallel backups take one place of each thing they load (a host, a datastore) before they load it.
All places of a request are taken together, and nobody who holds some waits for more of the same
gate, so there is no deadlock. A request passes an earlier one only where the two want nothing in
common: a busy datastore keeps nobody from an idle one, and nobody starves.

Thread model: any thread; `hold` blocks.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from appliance.base.run_context import CancelToken

_LOOK_AT_CANCEL_S = 0.2  # a token has no way to wake a waiter

Thing = tuple[str, str]
"""Its kind, and which one of that kind: `("datastore", "ds1")`."""


@dataclass(frozen=True, slots=True, eq=False)  # two requests for the same things are two
class _Request:
    things: frozenset[Thing]


class FairGate:
    def __init__(self, places: Mapping[str, int]) -> None:
        """`places`: how many each thing of a kind has."""
        if any(count < 1 for count in places.values()):
            raise ValueError("a gate without places would never open")
        self._places = dict(places)
        self._taken: Counter[Thing] = Counter()
        self._waiting: list[_Request] = []
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, things: Collection[Thing], cancel: CancelToken) -> Iterator[None]:
        """Hold one place of each of `things` for the block.

        Raises: CancelledError; KeyError: a kind that has no places.
        """
        request = _Request(frozenset(things))
        with self._changed:
            self._waiting.append(request)
            try:
                while not self._may_go(request):
                    cancel.check()
                    self._changed.wait(_LOOK_AT_CANCEL_S)
                self._taken.update(request.things)
            finally:
                self._waiting.remove(request)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._taken.subtract(request.things)
                self._changed.notify_all()

    def taken(self, thing: Thing) -> int:
        with self._changed:
            return self._taken[thing]

    def _may_go(self, request: _Request) -> bool:
        for earlier in self._waiting:
            if earlier is request:
                break
            if earlier.things & request.things:
                return False
        return all(self._taken[thing] < self._places[thing[0]] for thing in request.things)
