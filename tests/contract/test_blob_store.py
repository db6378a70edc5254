"""What every blob store promises; an implementation joins by an entry in `STORES`."""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.errors import StorageError
from appliance.repository.blob_store.contract import (
    BlobExistsError,
    BlobInfo,
    BlobNotFoundError,
    BlobStore,
)
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.blob_store.names import BlobNameError
from tests.support.faulty_store import FaultyStore
from tests.support.memory_store import MemoryStore

STORES: dict[str, Callable[[Path], BlobStore]] = {
    "memory": lambda folder: MemoryStore(),
    "local-folder": LocalFolderStore,
    "local-folder-two-open-files": lambda folder: LocalFolderStore(folder, open_files=2),
    "faulty-without-faults": lambda folder: FaultyStore(LocalFolderStore(folder)),
}
MIB = 1 << 20


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    return STORES[request.param](tmp_path)


def names(store: BlobStore, prefix: str) -> list[str]:
    return [blob.name for blob in store.list(prefix)]


def test_a_committed_blob_reads_back_whole(store: BlobStore) -> None:
    """Buffers of any kind and number come back as one run of bytes."""
    kinds: list[bytes | memoryview] = [
        b"abc",
        b"",
        memoryview(b"defg")[1:3],
        memoryview(bytearray(b"h")),
    ]
    buffers = kinds * 700
    expected = b"".join(bytes(buffer) for buffer in buffers)
    writer = store.create("packs/3f/3fa0")
    writer.write(buffers)
    assert writer.size_bytes == len(expected)
    writer.write([b"tail"])
    assert (writer.name, writer.size_bytes) == ("packs/3f/3fa0", len(expected) + 4)
    writer.commit()
    assert store.get("packs/3f/3fa0", limit_bytes=MIB) == expected + b"tail"
    assert store.size_bytes("packs/3f/3fa0") == len(expected) + 4


def test_nothing_is_visible_before_commit(store: BlobStore) -> None:
    """A blob in the making has no name yet: not for a read, a listing or a size."""
    writer = store.create("packs/a")
    writer.write([b"x" * 5000])
    assert names(store, "packs") == []
    with pytest.raises(BlobNotFoundError):
        store.get("packs/a", limit_bytes=MIB)
    with pytest.raises(BlobNotFoundError):
        store.size_bytes("packs/a")
    writer.commit()
    assert list(store.list("packs")) == [BlobInfo("packs/a", 5000)]


def test_an_aborted_blob_never_appears(store: BlobStore) -> None:
    """Abort may be repeated, and the name stays free."""
    writer = store.create("packs/a")
    writer.write([b"x"])
    writer.abort()
    writer.abort()
    assert names(store, "packs") == []
    store.put("packs/a", b"second")
    assert store.get("packs/a", limit_bytes=6) == b"second"


def test_abort_after_commit_does_no_harm(store: BlobStore) -> None:
    """Clean-up code may abort in every case."""
    writer = store.create("packs/a")
    writer.write([b"x"])
    writer.commit()
    writer.abort()
    assert store.get("packs/a", limit_bytes=1) == b"x"


def test_a_closed_writer_refuses(store: BlobStore) -> None:
    """Writing or committing after the end is an error of the program, not lost data."""
    writer = store.create("packs/a")
    writer.commit()
    with pytest.raises(ValueError, match="packs/a"):
        writer.write([b"x"])
    with pytest.raises(ValueError, match="packs/a"):
        writer.commit()


def test_a_blob_is_never_overwritten(store: BlobStore) -> None:
    """put, commit and rename refuse a name that is taken; the first blob stays as it was."""
    store.put("points/p", b"first")
    store.put("points/q", b"other")
    with pytest.raises(BlobExistsError):
        store.put("points/p", b"second")
    writer = store.create("points/p")
    writer.write([b"third"])
    with pytest.raises(BlobExistsError):
        writer.commit()
    with pytest.raises(BlobExistsError):
        store.rename("points/q", "points/p")
    assert store.get("points/p", limit_bytes=5) == b"first"
    assert store.get("points/q", limit_bytes=5) == b"other"


def test_one_of_many_writers_of_a_name_wins(store: BlobStore) -> None:
    """A conditional put decides a race: one succeeds, the others learn of it."""
    outcomes: list[bytes] = []
    start = threading.Barrier(8)

    def run(data: bytes) -> None:
        start.wait()
        with contextlib.suppress(BlobExistsError):
            store.put("locks/lease", data)
            outcomes.append(data)

    threads = [threading.Thread(target=run, args=(bytes([i]) * 9,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert store.get("locks/lease", limit_bytes=9) == outcomes[0]


def test_a_blob_over_the_limit_is_refused(store: BlobStore) -> None:
    """The limit is inclusive, and an empty blob is a blob."""
    store.put("a/ten", b"0123456789")
    store.put("a/empty", b"")
    assert store.get("a/ten", limit_bytes=10) == b"0123456789"
    assert store.get("a/empty", limit_bytes=0) == b""
    with pytest.raises(StorageError, match="ten"):
        store.get("a/ten", limit_bytes=9)


def test_a_missing_blob_is_named(store: BlobStore) -> None:
    """Every way to read says which blob is missing; a folder is not a blob."""
    store.put("packs/3f/x", b"x")
    for name in ("packs/none", "nowhere/none", "packs/3f"):
        with pytest.raises(BlobNotFoundError, match=name):
            store.get(name, limit_bytes=MIB)
        with pytest.raises(BlobNotFoundError, match=name):
            store.get_range(name, 0, 1)
        with pytest.raises(BlobNotFoundError, match=name):
            store.size_bytes(name)
        with pytest.raises(BlobNotFoundError, match=name):
            store.rename(name, "packs/other")


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(STORES)),
    size=st.integers(0, 300),
    ranges=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=8),
)
def test_ranges_are_slices(kind: str, size: int, ranges: list[tuple[int, int]]) -> None:
    """get_range is a slice; try_get_range is the same slice, or None."""
    data = bytes(i * 7 % 256 for i in range(size))
    with tempfile.TemporaryDirectory() as folder:
        store = STORES[kind](Path(folder))
        store.put("packs/a", data)
        for offset, length in ranges:
            assert store.get_range("packs/a", offset, length) == data[offset : offset + length]
            quick = store.try_get_range("packs/a", offset, length)
            assert quick is None or quick == data[offset : offset + length]


def test_a_huge_range_costs_no_memory(store: BlobStore) -> None:
    """The length is bounded by the blob before anything is allocated."""
    store.put("packs/a", b"abc")
    assert store.get_range("packs/a", 1, 1 << 62) == b"bc"
    assert store.try_get_range("packs/a", 1, 1 << 62) in (b"bc", None)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["memory", "local-folder"]),
    found=st.lists(
        st.lists(st.sampled_from(["a", "b", "a-1", "a.b", "a0", "Z", "_"]), min_size=1, max_size=4),
        max_size=12,
    ),
)
def test_a_listing_is_ordered_by_whole_name(kind: str, found: list[list[str]]) -> None:
    """As the sorted names, at any depth, and nothing of the neighbours of the prefix."""
    expected = sorted({"/".join(["p", *path, "leaf"]) for path in found})
    with tempfile.TemporaryDirectory() as folder:
        store = STORES[kind](Path(folder))
        store.put("p-neighbour/leaf", b"")
        for name in expected:
            store.put(name, name.encode())
        assert list(store.list("p")) == [BlobInfo(name, len(name)) for name in expected]


def test_listing_what_never_was_is_empty(store: BlobStore) -> None:
    """A folder that no blob has needed yet holds nothing; that is not an error."""
    assert names(store, "quarantine/packs") == []


def test_a_deleted_blob_is_gone_also_for_who_had_it_open(store: BlobStore) -> None:
    """Reads before the deletion do not keep the blob alive in this process; repeating is fine."""
    store.put("packs/a", b"first")
    assert store.get_range("packs/a", 0, 5) == b"first"
    store.delete("packs/a")
    store.delete("packs/a")
    store.delete("never/was")
    with pytest.raises(BlobNotFoundError):
        store.get_range("packs/a", 0, 5)
    store.put("packs/a", b"again")
    assert store.get_range("packs/a", 0, 5) == b"again"


def test_a_renamed_blob_is_found_under_its_new_name_only(store: BlobStore) -> None:
    """Quarantine moves a blob to a folder that may not exist yet."""
    store.put("packs/a", b"data")
    assert store.get_range("packs/a", 0, 4) == b"data"
    store.rename("packs/a", "quarantine/packs/a")
    assert store.get_range("quarantine/packs/a", 0, 4) == b"data"
    assert names(store, "packs") == []
    with pytest.raises(BlobNotFoundError):
        store.get_range("packs/a", 0, 4)


@pytest.mark.parametrize(
    "name",
    ["", "/", "/etc/passwd", "..", "a/../b", "a/./b", "a//b", "a/", ".hidden", "a/.b", "a\\b",
     "a b", "a\nb", "a\x00b", "ä", "tmp/x", "tmp", "x" * 201, "/".join("a" * 500)],
)  # fmt: skip
def test_a_name_outside_the_grammar_is_refused(store: BlobStore, name: str) -> None:
    """Whatever the operation, such a name never reaches the file system."""
    operations: list[Callable[[], object]] = [
        lambda: store.create(name),
        lambda: store.put(name, b""),
        lambda: store.get(name, limit_bytes=1),
        lambda: store.get_range(name, 0, 1),
        lambda: store.size_bytes(name),
        lambda: list(store.list(name)),
        lambda: store.delete(name),
        lambda: store.rename(name, "packs/a"),
        lambda: store.rename("packs/a", name),
    ]
    for operation in operations:
        with pytest.raises(BlobNameError):
            operation()


def test_discarding_spares_living_writers(store: BlobStore) -> None:
    """Whatever its age, a blob that is being written is not hurt."""
    writer = store.create("packs/a")
    writer.write([b"alive"])
    assert store.discard_unfinished(older_than_s=0) == 0
    writer.commit()
    assert store.get("packs/a", limit_bytes=5) == b"alive"


def test_readers_and_removers_in_many_threads_see_whole_blobs(store: BlobStore) -> None:
    """A read beside deletions and new blobs returns the right bytes or says that it is gone."""
    wrong: list[bytes] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for i in range(6):
                with contextlib.suppress(BlobNotFoundError):
                    data = store.get_range(f"packs/{i}", 0, 4096)
                    if data != bytes([i]) * 4096:
                        wrong.append(data)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for thread in readers:
        thread.start()
    for _ in range(8):
        for i in range(6):
            store.put(f"packs/{i}", bytes([i]) * 4096)
        for i in range(6):
            store.delete(f"packs/{i}")
    done.set()
    for thread in readers:
        thread.join()
    assert wrong == []
