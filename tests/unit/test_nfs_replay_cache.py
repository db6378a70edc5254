"""The duplicate request cache, and which changes ran alone."""

from __future__ import annotations

from nfs_server.overlaps import Overlaps
from nfs_server.replay_cache import ENTRIES_MAX, KEPT_S, ReplayCache, key_of
from nfs_server.rpc import Call


def key(xid: int, arguments: bytes = b"arguments", client: str = "10.0.0.1", procedure: int = 12):  # type: ignore[no-untyped-def]
    return key_of(client, Call(xid, 100003, 3, procedure, 0, 0, memoryview(arguments)))


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_repeated_call_gets_the_first_reply() -> None:
    """And is dropped while the first one is in progress."""
    cache = ReplayCache()
    assert cache.begin(key(1)) is None
    assert cache.begin(key(1)) == b""
    cache.finish(key(1), [b"re", b"ply"])
    assert cache.begin(key(1)) == b"reply"


def test_only_the_same_call_of_the_same_client_is_a_repetition() -> None:
    """An xid alone says little: clients count from where they like."""
    cache = ReplayCache()
    cache.begin(key(1))
    cache.finish(key(1), [b"reply"])
    for other in (key(2), key(1, b"other"), key(1, client="10.0.0.2"), key(1, procedure=13)):
        assert cache.begin(other) is None


def test_a_call_that_was_not_begun_may_be_tried_again() -> None:
    """Its connection went before a worker had it."""
    cache = ReplayCache()
    cache.begin(key(1))
    cache.drop(key(1))
    assert cache.begin(key(1)) is None


def test_replies_are_kept_for_a_while_and_no_longer() -> None:
    """Longer than a client takes to reconnect."""
    clock = Clock()
    cache = ReplayCache(clock)
    cache.begin(key(1))
    cache.finish(key(1), [b"reply"])
    clock.now_s += 120
    assert cache.begin(key(1)) == b"reply"
    clock.now_s += KEPT_S
    assert cache.begin(key(1)) is None


def test_the_cache_is_bounded_and_forgets_no_call_in_progress() -> None:
    """The oldest replies go; a running call is known however many come after it."""
    cache = ReplayCache()
    cache.begin(key(0))
    for xid in range(1, 2 * ENTRIES_MAX):
        cache.begin(key(xid))
        cache.finish(key(xid), [b"reply"])
    assert len(cache) == ENTRIES_MAX + 1
    assert cache.begin(key(0)) == b""
    assert cache.begin(key(2 * ENTRIES_MAX - 1)) == b"reply"
    assert cache.begin(key(1)) is None


def test_changes_one_after_another_are_alone() -> None:
    """Each may show attributes from before it."""
    overlaps = Overlaps()
    first = overlaps.begin((1, 1))
    other = overlaps.begin((1, 2))
    assert first.end()
    assert first.end()
    assert overlaps.begin((1, 1)).end()
    assert other.end()
    assert not len(overlaps)


def test_changes_that_overlap_are_not_alone() -> None:
    """Neither the longer one, nor those inside it."""
    overlaps = Overlaps()
    long = overlaps.begin((1, 1))
    assert not overlaps.begin((1, 1)).end()
    assert not long.end()
    early, late = overlaps.begin((1, 1)), overlaps.begin((1, 1))
    assert not early.end()
    assert not late.end()
    assert not len(overlaps)
