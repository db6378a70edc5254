"""Decoded chunks by digest: an LRU cache bounded in bytes, in which nothing is decoded twice.

Shared by all readers of a repository. A chunk that one thread is decoding is waited for by the
others that want it: read-ahead and the client it works for would else decode everything twice.

Thread model: any thread. Getting a chunk that is there takes no lock.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from appliance.base.units import MIB

DEFAULT_CACHE_BYTES = 256 * MIB

LoadMany = Callable[[list[bytes]], dict[bytes, bytes]]
_Loading = Future[dict[bytes, bytes]]


class ChunkCache:
    def __init__(self, limit_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._held_bytes = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._loading: dict[bytes, _Loading] = {}
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> bytes | None:
        raw = self._chunks.get(digest)
        if raw is not None:
            try:  # noqa: SIM105 - `suppress` costs as much as the rest
                self._chunks.move_to_end(digest)
            except KeyError:
                pass  # evicted by another thread since: the bytes are good
        return raw

    def put(self, digest: bytes, raw: bytes) -> None:
        with self._lock:
            self._put(digest, raw)

    def _put(self, digest: bytes, raw: bytes) -> None:
        if digest in self._chunks:
            return
        self._chunks[digest] = raw
        self._held_bytes += len(raw)
        while self._held_bytes > self._limit_bytes:
            _, dropped = self._chunks.popitem(last=False)
            self._held_bytes -= len(dropped)

    def held(self, digests: Iterable[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """Return those chunks that are here, and the digests of the others, each once."""
        found: dict[bytes, bytes] = {}
        missing: list[bytes] = []
        for digest in dict.fromkeys(digests):
            raw = self.get(digest)
            if raw is None:
                missing.append(digest)
            else:
                found[digest] = raw
        return found, missing

    def get_or_load(self, digests: Iterable[bytes], load: LoadMany) -> dict[bytes, bytes]:
        """Return all chunks: held ones, those being loaded by others, the rest by one `load`.

        Raises what `load` raised here. Where it failed for another thread, which may have wanted
        a damaged chunk besides, what this one waited for is loaded anew.
        """
        found, missing = self.held(digests)
        if not missing:
            return found
        mine, promise, others = self._claim(missing)
        if mine:
            found |= self._load(mine, promise, load)
        failed: list[bytes] = []
        for digest, future in others.items():
            if future.exception() is None:
                found[digest] = future.result()[digest]
            else:
                failed.append(digest)
        return found | self.get_or_load(failed, load) if failed else found

    def _claim(self, missing: list[bytes]) -> tuple[list[bytes], _Loading, dict[bytes, _Loading]]:
        mine: list[bytes] = []
        promise: _Loading = Future()
        others: dict[bytes, _Loading] = {}
        with self._lock:
            for digest in missing:
                future = self._loading.setdefault(digest, promise)
                if future is promise:
                    mine.append(digest)
                else:
                    others[digest] = future
        return mine, promise, others

    def _load(self, mine: list[bytes], promise: _Loading, load: LoadMany) -> dict[bytes, bytes]:
        """Load what this thread has claimed and hand it to whoever waits, also a failure."""
        try:
            loaded = load(mine)
        except BaseException as error:
            with self._lock:
                for digest in mine:
                    del self._loading[digest]
            promise.set_exception(error)
            raise
        with self._lock:
            for digest in mine:
                del self._loading[digest]
                self._put(digest, loaded[digest])
        promise.set_result(loaded)
        return loaded
