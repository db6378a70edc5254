"""Writing disks into a repository and reading them back, against plain byte strings."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.base.run_context import RunContext
from appliance.blocks.extents import Extent
from appliance.repository import setup
from appliance.repository.chunker import CHUNK_RULES
from appliance.repository.format import BLOCK_BYTES, EMPTY_DIGEST, SEGMENT_BYTES
from appliance.repository.image_reader import ImageReader
from appliance.repository.image_writer import ImageResult
from appliance.repository.repository import Repository
from tests.support.memory_reader import MemoryReader


@pytest.fixture(scope="module", params=CHUNK_RULES, ids="chunk rule {}".format)
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Repository]:
    path: Path = tmp_path_factory.mktemp("repository") / "r"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "NEW_REPOSITORY_RULE", request.param)
        Repository.create(path)
    with Repository.open(path) as opened:
        assert opened.chunker.rule == CHUNK_RULES[request.param]
        yield opened


def write(
    repository: Repository,
    disk: MemoryReader,
    parent: bytes | None = None,
    changed: list[Extent] | None = None,
) -> ImageResult:
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        result = run.images.write(disk, parent, changed)
        run.flush()
        return result


def read_all(repository: Repository, root: bytes, size_bytes: int) -> bytes:
    reader = ImageReader(repository.chunks, root, size_bytes, repository.served)
    return reader.read_at(0, size_bytes)


def guest_disk(seed: int, blocks: int) -> bytearray:
    """Blocks as a guest has them: runs of zeros, runs of data, some of it repeated."""
    source = random.Random(seed)
    repeated = [source.randbytes(BLOCK_BYTES) for _ in range(40)]
    disk = bytearray()
    while len(disk) < blocks * BLOCK_BYTES:
        run = source.randrange(1, 60)
        kind = source.randrange(3)
        for _ in range(run):
            fresh = source.randbytes(64) * (BLOCK_BYTES // 64)
            disk += (bytes(BLOCK_BYTES), fresh, source.choice(repeated))[kind]
    return disk[: blocks * BLOCK_BYTES]


def change(disk: bytearray, source: random.Random) -> list[Extent]:
    """Change a few places, aligned or not, to data or to zeros; return where."""
    extents = []
    for _ in range(source.randrange(1, 6)):
        length = min(source.choice([1, 512, 4096, 65536, 300_000]), len(disk))
        offset = source.randrange(len(disk) - length + 1)
        if source.random() < 0.5:
            offset = offset // BLOCK_BYTES * BLOCK_BYTES
        fresh = bytes(length) if source.random() < 0.4 else source.randbytes(length)
        disk[offset : offset + length] = fresh
        extents.append(Extent(offset, length))
    return extents


seeds = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, 4097, SEGMENT_BYTES + 513])
def test_a_disk_of_any_size_reads_back_as_it_was(repository: Repository, size_bytes: int) -> None:
    """Sizes that are no multiple of a block or a segment lose nothing."""
    disk = random.Random(size_bytes).randbytes(size_bytes)
    result = write(repository, MemoryReader(disk))
    assert read_all(repository, result.root, size_bytes) == disk


def test_a_disk_of_zeros_stores_nothing(repository: Repository) -> None:
    """Neither holes nor written zeros cost a chunk or a node."""
    result = write(repository, MemoryReader(bytes(3 * SEGMENT_BYTES)))
    assert (result.root, result.stored_bytes) == (EMPTY_DIGEST, 0)


@seeds
@given(seed=st.integers(0, 1 << 32))
def test_an_incremental_gives_the_tree_of_a_full_one(repository: Repository, seed: int) -> None:
    """With a change list or by rescanning, the root equals that of a full backup of the disk."""
    source = random.Random(seed)
    disk = guest_disk(seed, source.choice([40, 700, 2048, 3000]))
    first = write(repository, MemoryReader(disk))
    changed = change(disk, source)
    full = write(repository, MemoryReader(disk))
    listed = write(repository, MemoryReader(disk), first.root, changed)
    rescanned = write(repository, MemoryReader(disk), first.root)
    assert read_all(repository, full.root, len(disk)) == disk
    assert listed.root == full.root
    assert rescanned.root == full.root


@seeds
@given(seed=st.integers(0, 1 << 32), grow=st.integers(1, 3_000_000))
def test_a_grown_disk_is_an_incremental(repository: Repository, seed: int, grow: int) -> None:
    """The new end counts as changed; the tree equals that of a full backup."""
    disk = guest_disk(seed, 300)[: -(seed % BLOCK_BYTES) or None]
    first = write(repository, MemoryReader(disk))
    old_size = len(disk)
    disk += random.Random(seed).randbytes(grow)
    grown = write(repository, MemoryReader(disk), first.root, [Extent(old_size, grow)])
    assert read_all(repository, grown.root, len(disk)) == disk
    assert grown.root == write(repository, MemoryReader(disk)).root


def test_an_incremental_reads_only_what_changed(repository: Repository) -> None:
    """The edges of a changed chunk come from the repository, not from the source."""
    disk = guest_disk(7, 2048)
    first = write(repository, MemoryReader(disk))
    disk[1_000_000:1_000_100] = b"x" * 100
    source = MemoryReader(disk)
    result = write(repository, source, first.root, [Extent(1_000_000, 100)])
    assert source.read_bytes <= 2 * BLOCK_BYTES
    assert result.read_bytes == source.read_bytes
    assert read_all(repository, result.root, len(disk)) == disk


def test_a_changed_extent_with_the_old_content_changes_nothing(repository: Repository) -> None:
    """What the hypervisor reports too coarsely costs no chunk and no node."""
    disk = guest_disk(8, 2048)
    first = write(repository, MemoryReader(disk))
    again = write(repository, MemoryReader(disk), first.root, [Extent(0, len(disk))])
    assert (again.root, again.changed_bytes, again.stored_bytes) == (first.root, 0, 0)


@seeds
@given(seed=st.integers(0, 1 << 32))
def test_any_range_reads_as_the_bytes_there(repository: Repository, seed: int) -> None:
    """`read_at`, `try_read_at` and `map_extents` agree with the bytes for any range."""
    source = random.Random(seed)
    disk = guest_disk(seed % 20, 3000)
    result = write(repository, MemoryReader(disk))
    reader = ImageReader(repository.chunks, result.root, len(disk), repository.served)
    for _ in range(20):
        length = source.randrange(0, 2_000_000)
        offset = source.randrange(len(disk) - length)
        assert reader.read_at(offset, length) == disk[offset : offset + length]
        at_once = reader.try_read_at(offset, length)
        assert at_once is None or bytes(at_once) == disk[offset : offset + length]
        position = offset
        for mapped in reader.map_extents(offset, length):
            assert mapped.offset == position
            position = mapped.end
            if mapped.kind.value == "zero":
                assert not any(disk[mapped.offset : mapped.end])
        assert position == offset + length
