"""Which changes of one file ran alone: only they may show attributes from before the change.

A client that is shown attributes from before and after takes everything between as its own doing
and keeps its cache. If another client's change lies between, it would never see it; RFC 1813
section 2.6 asks a server that cannot tell to leave the attributes from before out.

Thread model: any thread. Nothing waits: changes that overlap are found out, not held up.
"""

from __future__ import annotations

import threading

Key = tuple[int, int]
"""Tree id and file number."""


class _State:
    __slots__ = ("begun", "running")

    def __init__(self) -> None:
        self.running = 0
        self.begun = 0


class Ticket:
    """One change, from before its first look to after its last. Use `Overlaps.begin`."""

    __slots__ = ("_alone", "_begun", "_key", "_open", "_overlaps", "_state")

    def __init__(self, overlaps: Overlaps, key: Key, state: _State) -> None:
        self._overlaps = overlaps
        self._key = key
        self._state = state
        self._begun = state.begun
        self._alone = state.running == 1
        self._open = True

    def end(self) -> bool:
        """Whether no other change of the file ran meanwhile. Idempotent."""
        if self._open:
            self._open = False
            self._alone = self._overlaps.end(self._key, self._state, self._begun) and self._alone
        return self._alone


class Overlaps:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[Key, _State] = {}

    def __len__(self) -> int:
        return len(self._states)

    def begin(self, key: Key) -> Ticket:
        with self._lock:
            state = self._states.get(key)
            if state is None:
                state = self._states[key] = _State()
            state.running += 1
            state.begun += 1
            return Ticket(self, key, state)

    def end(self, key: Key, state: _State, begun: int) -> bool:
        with self._lock:
            state.running -= 1
            if not state.running:
                del self._states[key]
            return state.begun == begun
