"""The cache of decoded chunks, where several threads want the same one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.repository.chunk_cache import ChunkCache


def test_what_another_thread_failed_to_load_besides_is_loaded_anew() -> None:
    """A reader of a good chunk gets it, though read-ahead met a damaged one in the same batch."""
    cache = ChunkCache()
    began, go_on = threading.Event(), threading.Event()

    def read_ahead(_: list[bytes]) -> dict[bytes, bytes]:
        began.set()
        go_on.wait(20)
        raise OSError("the bad one is damaged")

    def claimed(_: list[bytes]) -> dict[bytes, bytes]:
        go_on.set()  # the other thread has claimed `good` by now, and this one waits for it
        return {b"own": b"1"}

    def load(wanted: list[bytes]) -> dict[bytes, bytes]:
        return claimed(wanted) if wanted == [b"own"] else dict.fromkeys(wanted, b"2")

    with ThreadPoolExecutor(1) as other:
        failing = other.submit(cache.get_or_load, [b"good", b"bad"], read_ahead)
        assert began.wait(20)
        found = cache.get_or_load([b"own", b"good"], load)
        with pytest.raises(OSError, match="damaged"):
            failing.result(20)
    assert found == {b"own": b"1", b"good": b"2"}
    assert cache.get(b"good") == b"2"
