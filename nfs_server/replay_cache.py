"""The duplicate request cache: a repeated request gets the first one's reply, not a second effect.

TCP clients send a call again after they had to reconnect, so the key is the client's address and
the call, not the connection. A call in progress is dropped when it is repeated: its first answer
goes out on the connection it came on, and the client asks again. Bounded in entries and age.
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

Key = tuple[str, int, int, int, int, int]


def key_of(client: str, call: Call) -> Key:
    check = crc32(call.arguments)
    return (client, call.xid, call.program, call.version, call.procedure, check)


class ReplayCache:
    def __init__(self, now_s: Callable[[], float] = monotonic) -> None:
        self._now_s = now_s
        self._entries: OrderedDict[Key, tuple[float, bytes | None]] = OrderedDict()

    def begin(self, key: Key) -> bytes | None:
        """Note a new call as being in progress and return None.

        For a call that was answered, return its reply; for one in progress, empty bytes.
        """
        self._forget_old()
        known = self._entries.get(key)
        if known is None:
            self._entries[key] = (self._now_s(), None)
            return None
        return known[1] or b""

    def finish(self, key: Key, reply: list[Buffer]) -> None:
        self._entries[key] = (self._now_s(), b"".join(reply))
        self._entries.move_to_end(key)

    def drop(self, key: Key) -> None:
        """The call was never begun; it may be tried again."""
        self._entries.pop(key, None)

    def _forget_old(self) -> None:
        oldest_s = self._now_s() - KEPT_S
        while self._entries:
            key, (at_s, _) = next(iter(self._entries.items()))
            if at_s > oldest_s and len(self._entries) < ENTRIES_MAX:
                return
            del self._entries[key]
