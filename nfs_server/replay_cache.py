"""The duplicate request cache: a repeated request gets the first one's reply, not a second effect.

TCP clients send a call again after they had to reconnect, so the key is the client's address and
the call, not the connection. A call in progress is dropped when it is repeated: its first answer
goes out on the connection it came on, and the client asks again. A repeated WRITE is only kept from
running beside the first one, where the later end could undo a newer write; its reply is not kept.

Bounded in entries and age; calls in progress are bounded by what connections may hold.
Event loop only. Source: RFC 1813 section 4.5; Juszczak, USENIX 1989.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from zlib import crc32

from nfs_server.rpc import Call
from nfs_server.vfs import Buffer

ENTRIES_MAX = 8192
KEPT_S = 180.0
_CHECKED_BYTES = 1024  # handles, names, attributes; not the data of a WRITE

Key = tuple[str, int, int, int, int, int]


def key_of(client: str, call: Call) -> Key:
    check = crc32(call.arguments[:_CHECKED_BYTES])
    return (client, call.xid, call.program, call.procedure, len(call.arguments), check)


class ReplayCache:
    def __init__(self, now_s: Callable[[], float] = monotonic) -> None:
        self._now_s = now_s
        self._running: set[Key] = set()
        self._answered: OrderedDict[Key, tuple[float, bytes]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._running) + len(self._answered)

    def begin(self, key: Key) -> bytes | None:
        """Note a new call as being in progress and return None.

        For a call that was answered, return its reply; for one in progress, empty bytes.
        """
        if key in self._running:
            return b""
        known = self._answered.get(key)
        if known is not None and known[0] > self._now_s() - KEPT_S:
            return known[1]
        self._running.add(key)
        return None

    def finish(self, key: Key, reply: list[Buffer]) -> None:
        self._running.discard(key)
        now_s = self._now_s()
        self._answered[key] = (now_s, b"".join(reply))
        self._answered.move_to_end(key)
        while self._answered:
            oldest, (at_s, _) = next(iter(self._answered.items()))
            if at_s > now_s - KEPT_S and len(self._answered) <= ENTRIES_MAX:
                return
            del self._answered[oldest]

    def drop(self, key: Key) -> None:
        """The call was never begun, or may be done again."""
        self._running.discard(key)
