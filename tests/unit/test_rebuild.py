"""The local index, made anew from segments, footers or bare records."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.base.run_context import RunContext
from appliance.repository.format import FOOTER_TRAILER, INDEX_SEGMENTS, PACKS
from appliance.repository.index import IndexDamagedError
from appliance.repository.locks import LockedError
from appliance.repository.rebuild import rebuild_index
from appliance.repository.repository import Repository
from tests.support.check_repository import check_repository, restored
from tests.support.memory_reader import MemoryReader
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, random_disk

DISK = bytes(random_disk(1, 400))


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A repository with one point, and a sealed pack of a run that was killed."""
    path = tmp_path / "r"
    Repository.create(path)
    with Repository.open(path, options=SMALL_PACKS) as repository:
        back_up_bytes(repository, DISK)
        with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
            run.images.write(MemoryReader(bytes(random_disk(2, 100))), None, None)
    return path


def assert_whole(path: Path) -> None:
    with Repository.open(path, options=SMALL_PACKS) as repository:
        check_repository(repository)
        for manifest in repository.points.list():
            assert restored(repository, manifest.point_id) == DISK
        again = back_up_bytes(repository, DISK, "again")
        assert again.disks[0].new_bytes == 0


def entries(path: Path) -> dict[bytes, tuple[bytes, int]]:
    with Repository.open(path, options=SMALL_PACKS) as repository:
        digests = [row[0] for row in repository.index.entries()]
        places = repository.index.find_many(digests)
        return {digest: (place.pack_id, place.offset) for digest, place in places.items()}


def test_a_rebuilt_index_equals_the_one_that_grew(path: Path) -> None:
    """Entry by entry; the generation goes on, so announcements keep their order."""
    before = entries(path)
    with Repository.open(path) as repository:
        generation = repository.index.announce([])
        repository.index.end_announcement()
    report = rebuild_index(path)
    assert (report.complete, report.replaced, report.added_packs) == (True, False, 0)
    assert entries(path) == before
    with Repository.open(path) as repository:
        assert repository.index.generation() == generation
    assert_whole(path)


def test_a_new_index_has_a_later_generation(path: Path) -> None:
    """A backup that began with the lost index counts as older than any new announcement."""
    with Repository.open(path) as repository:
        before = repository.index.announce([])
    shutil.rmtree(path / "lmdb")
    with Repository.open(path) as repository:
        assert repository.index.generation() > before


def test_from_packs_lists_what_no_segment_lists(path: Path) -> None:
    """Also packs of killed runs, for the next collection to judge."""
    report = rebuild_index(path, from_packs=True)
    assert report.added_packs >= 1
    assert_whole(path)


@pytest.mark.parametrize("footer", ["sound", "damaged"])
def test_lost_segments_are_made_again_from_packs(path: Path, footer: str) -> None:
    """From the footers, and from the bare records where a footer is damaged too."""
    shutil.rmtree(path / INDEX_SEGMENTS)
    shutil.rmtree(path / "lmdb")
    if footer == "damaged":
        for pack in (path / PACKS).rglob("*.pack"):
            pack.chmod(0o600)
            data = bytearray(pack.read_bytes())
            data[-FOOTER_TRAILER.size] ^= 1
            pack.write_bytes(data)
    report = rebuild_index(path)
    assert report.complete
    assert report.added_packs >= 2
    with Repository.open(path, options=SMALL_PACKS) as repository:
        for manifest in repository.points.list():
            assert restored(repository, manifest.point_id) == DISK
    if footer == "sound":
        assert_whole(path)


def test_a_missing_pack_is_reported(path: Path) -> None:
    """Its entries stay out, so deduplication cannot refer to it."""
    with Repository.open(path, options=SMALL_PACKS) as repository:
        victim = repository.index.packs()[0]
    lost = next((path / PACKS).rglob(f"{victim.pack_id.hex()}.pack"))
    lost.unlink()
    report = rebuild_index(path)
    assert [name.rpartition("/")[2] for name in report.missing_packs] == [lost.name]
    assert not report.complete
    with Repository.open(path, options=SMALL_PACKS) as repository:
        again = back_up_bytes(repository, DISK, "again")
        assert again.disks[0].new_bytes > 0
        assert restored(repository, again.point_id) == DISK


def test_a_rebuild_and_a_backup_exclude_each_other(path: Path) -> None:
    """A backup would insert into one index what it looked up in another."""
    with Repository.open(path) as repository:
        run = repository.begin_run(repository.new_run_id(), RunContext.quiet())
        with run, pytest.raises(LockedError, match="backup"):
            rebuild_index(path)


def test_a_process_with_the_old_index_open_is_told(path: Path) -> None:
    """It would deduplicate against packs that are gone."""
    with Repository.open(path) as repository:
        data = path / "lmdb" / "data.mdb"
        data.rename(path / "old.mdb")
        data.write_bytes(random.Random(1).randbytes(8192))
        with pytest.raises(IndexDamagedError, match="replaced"):
            repository.begin_run(repository.new_run_id(), RunContext.quiet())
