"""Garbage collection: what it frees, what it keeps, and every way to run beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.base.consistency import Consistency
from appliance.base.ids import RecoveryPointId
from appliance.base.run_context import RunContext
from appliance.blocks.device import BlockReader
from appliance.blocks.extents import Extent, MappedExtent
from appliance.jobs.backup import back_up
from appliance.repository.boot_profile import load_profile, profile_name, save_profile
from appliance.repository.errors import PointNotFoundError
from appliance.repository.format import BOOT_PROFILES, INDEX_SEGMENTS, PACKS, point_name
from appliance.repository.gc import GcOptions, GcOutcome, collect_garbage, plan_gc
from appliance.repository.locks import LockedError, SessionKind
from appliance.repository.manifest import Manifest
from appliance.repository.mark import GcRefusedError, roots_of_now
from appliance.repository.repository import Repository
from appliance.sources.frozen import FrozenDisk, FrozenVm
from tests.support.check_repository import check_repository, packed_bytes, restored
from tests.support.memory_reader import MemoryReader
from tests.support.small_backups import SMALL_PACKS, back_up_bytes, overwrite, random_disk

OLD = bytes(random_disk(1, 500))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    Repository.create(tmp_path / "r")
    with Repository.open(tmp_path / "r", options=SMALL_PACKS) as opened:
        yield opened


def changed(disk: bytes, seed: int, places: int = 12) -> bytes:
    new = bytearray(disk)
    overwrite(new, seed, places)
    return bytes(new)


def all_packs(repository: Repository) -> set[str]:
    return {blob.name for blob in repository.store.list(PACKS)}


def collect(repository: Repository) -> GcOutcome:
    outcome = collect_garbage(repository)
    check_repository(repository)
    return outcome


def forget(repository: Repository, *points: Manifest) -> None:
    for point in points:
        repository.points.forget(point.id)


class PausingReader(MemoryReader):
    """Runs `between` once, when the backup has read the first half of the disk."""

    def __init__(self, data: bytes, between: object) -> None:
        super().__init__(data)
        self._between = between

    def read_into(self, offset: int, buffer: memoryview) -> None:
        between, self._between = self._between, None
        if between is not None:
            between()
        super().read_into(offset, buffer)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        return super().map_extents(offset, length)


def back_up_reader(
    repository: Repository, reader: BlockReader, vm: str, *, full: bool = False
) -> Manifest:
    frozen = FrozenVm(
        name=vm,
        created_at=repository.clock.now(),
        consistency=Consistency.OFFLINE,
        source="image",
        disks=[FrozenDisk(number=0, label="disk", reader=reader)],
    )
    return back_up(repository, frozen, RunContext.quiet(), full=full).manifest


def test_nothing_is_removed_while_points_need_everything(repository: Repository) -> None:
    """The plan of a repository without garbage is empty."""
    first = back_up_bytes(repository, OLD)
    second = back_up_bytes(repository, changed(OLD, 2))
    before = all_packs(repository)
    outcome = collect(repository)
    assert outcome.plan is not None
    assert (outcome.plan.packs, outcome.freed_bytes) == ((), 0)
    assert all_packs(repository) == before
    assert restored(repository, first.point_id) == OLD
    assert restored(repository, second.point_id) == changed(OLD, 2)


def test_a_dry_run_says_what_a_run_then_frees(repository: Repository, tmp_path: Path) -> None:
    """And changes nothing: neither blobs nor index nor generation."""
    first = back_up_bytes(repository, OLD)
    back_up_bytes(repository, changed(OLD, 2, 60))
    forget(repository, first)
    before = all_packs(repository), repository.index.generation(), repository.index.entry_count()
    plan = plan_gc(repository)
    assert plan.drop or plan.rewrite
    assert plan.as_json()["freed_bytes"] == plan.freed_bytes > 0
    after = all_packs(repository), repository.index.generation(), repository.index.entry_count()
    assert after == before
    size = packed_bytes(tmp_path / "r")
    freed = collect(repository).freed_bytes
    assert freed == size - packed_bytes(tmp_path / "r")
    assert plan.freed_bytes * 0.97 - 2000 <= freed <= plan.freed_bytes  # headers and footers


def test_what_is_left_is_small_when_all_points_go(repository: Repository, tmp_path: Path) -> None:
    """Without points there are no packs, no index segments and no entries."""
    points = [back_up_bytes(repository, changed(OLD, seed)) for seed in range(4)]
    forget(repository, *points)
    collect(repository)
    assert packed_bytes(tmp_path / "r") == 0
    assert list(repository.store.list(INDEX_SEGMENTS)) == []
    assert repository.index.entry_count() == 0


def test_repeated_forgetting_and_collecting_keeps_every_point(repository: Repository) -> None:
    """Ten rounds of backups of two VMs, each losing its oldest point."""
    disks: dict[str, bytes] = {}
    disk = OLD
    for seed in range(10):
        disk = changed(disk, 100 + seed)
        for vm in ("a", "b"):
            disks[back_up_bytes(repository, disk, vm).point_id] = disk
        if seed >= 2:
            oldest = [repository.points.list(vm)[0] for vm in ("a", "b")]
            forget(repository, *oldest)
            for point in oldest:
                del disks[point.point_id]
            collect(repository)
        for point_id, expected in disks.items():
            assert restored(repository, point_id) == expected
    assert plan_gc(repository).freed_bytes == 0


def test_a_point_that_cannot_be_understood_stops_everything(repository: Repository) -> None:
    """Absence of evidence frees nothing; the error names the point."""
    point = back_up_bytes(repository, OLD)
    forget(repository, back_up_bytes(repository, random_disk(9, 300), "other"))
    before = all_packs(repository)
    repository.index.quarantine(
        [
            (point.disks[0].root, place.pack_id)
            for place in [repository.index.find(point.disks[0].root)]
            if place is not None
        ]
    )
    with pytest.raises(GcRefusedError, match=point.point_id):
        collect_garbage(repository)
    assert all_packs(repository) == before


def test_a_chunk_that_the_index_lost_stops_everything(repository: Repository) -> None:
    """Its pack would look like garbage otherwise."""
    back_up_bytes(repository, OLD)
    digest = next(iter(repository.index.entries()))[0]
    rows = dict(repository.index.entries())
    repository.index.announce([digest])
    repository.index.end_announcement()
    assert len(rows) == repository.index.entry_count() + 1
    with pytest.raises(GcRefusedError):
        collect_garbage(repository)


def test_two_collections_and_a_rebuild_exclude_each_other(repository: Repository) -> None:
    """The second is told who is at work."""
    locks = repository.locks
    with (
        locks.register(SessionKind.GC, repository.new_run_id()),
        pytest.raises(LockedError, match="gc"),
    ):
        collect_garbage(repository)
    with (
        locks.register(SessionKind.REBUILD_INDEX, repository.new_run_id()),
        pytest.raises(LockedError, match="rebuild-index"),
    ):
        collect_garbage(repository)


def test_an_open_reader_keeps_its_point(repository: Repository) -> None:
    """A forgotten point is read to its end; with the reader goes its space."""
    point = back_up_bytes(repository, OLD)
    reader = repository.open_image(point, 0)
    forget(repository, point)
    assert collect(repository).freed_bytes == 0
    assert reader.read_at(0, len(OLD)) == OLD
    reader.close()
    assert collect(repository).freed_bytes > 0
    with pytest.raises(PointNotFoundError):
        repository.open_image(point, 0)


def test_a_reader_finds_what_was_moved(repository: Repository) -> None:
    """A place in a pack is a hint: gone, it is looked up again, in one chunk as in many."""
    first = back_up_bytes(repository, OLD)
    new = changed(OLD, 2, 60)
    second = back_up_bytes(repository, new)
    reader = repository.open_image(second, 0)
    reader.read_at(0, 4096)
    places = repository.index.find_many([row[0] for row in repository.index.entries()])
    forget(repository, first)
    find_many = repository.index.find_many
    outcome = collect_garbage(repository, GcOptions(rewrite_below=2.0))  # every pack is moved
    check_repository(repository)
    assert outcome.rewritten_packs
    stale = iter([lambda digests: {d: places[d] for d in digests}])
    repository.index.find_many = lambda digests: next(stale, find_many)(digests)  # type: ignore[method-assign]
    assert reader.read_at(0, len(new)) == new
    reader.close()


def test_a_backup_that_looked_before_the_announcement_is_waited_for(
    repository: Repository,
) -> None:
    """It refers to a chunk that no point needs any more: its point is whole from its commit on."""
    old = back_up_bytes(repository, OLD, "old")
    outcomes: list[GcOutcome] = []

    def between() -> None:  # the run has begun; its first segment is not looked up yet
        forget(repository, old)

    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        image = run.images.write(MemoryReader(OLD), None, None)  # all of it is known
        assert image.new_bytes == 0
        between()
        outcomes.append(collect_garbage(repository))
        assert outcomes[0].pending_bytes > 0
        assert "gc.waiting-for-writers" in {reason.code for reason in outcomes[0].reasons}
        run.flush()
        manifest = old.model_copy(
            update={
                "point_id": run.run_id,
                "run_id": run.run_id,
                "disks": (old.disks[0].model_copy(update={"root_hex": image.root.hex()}),),
            }
        )
        run.commit(manifest)
        assert restored(repository, run.run_id) == OLD  # doomed records can be read
    outcome = collect(repository)
    assert (outcome.pending_bytes, outcome.dropped_packs) == (0, 0)
    assert restored(repository, run.run_id) == OLD
    again = back_up_bytes(repository, OLD, "again", full=True)
    assert again.disks[0].new_bytes == 0  # rescued digests are offered again


def test_the_next_collection_sweeps_what_was_announced(repository: Repository) -> None:
    """Although another backup, of the new generation, is at work all the time."""
    forget(repository, back_up_bytes(repository, OLD, "old"))
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()):
        assert collect_garbage(repository).pending_bytes > 0
        with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as newer:
            assert collect_garbage(repository).plan is None
            newer.images.write(MemoryReader(bytes(random_disk(3, 50))), None, None)
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()):
        assert collect_garbage(repository).freed_bytes > 0
    assert collect(repository).pending_bytes == 0


def test_a_newer_backup_stores_doomed_chunks_anew(repository: Repository) -> None:
    """Between announcement and sweep they are not offered; the sweep then removes the old copy."""
    forget(repository, back_up_bytes(repository, OLD, "old"))
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()):
        assert collect_garbage(repository).pending_bytes > 0
        new = back_up_bytes(repository, OLD, "new")
        assert new.disks[0].new_bytes > 0
    assert collect(repository).freed_bytes > 0
    assert restored(repository, new.point_id) == OLD


def test_a_point_on_a_point_on_a_forgotten_point_survives(repository: Repository) -> None:
    """Old run commits A; a newer one builds B upon A; A is forgotten before the sweep."""
    seed = back_up_bytes(repository, OLD, "seed")
    run_id = repository.new_run_id()
    with repository.begin_run(run_id, RunContext.quiet()) as run:
        image = run.images.write(MemoryReader(OLD), None, None)
        forget(repository, seed)
        assert collect_garbage(repository).pending_bytes > 0
        run.flush()
        entry = seed.disks[0].model_copy(update={"root_hex": image.root.hex()})
        point = seed.model_copy(
            update={"point_id": run_id, "run_id": run_id, "vm": "web", "disks": (entry,)}
        )
        run.commit(point)
    new = changed(OLD, 5, 1)
    paused = PausingReader(new, lambda: (forget(repository, point), collect_garbage(repository)))
    manifest = back_up_reader(repository, paused, "web")
    assert manifest.parent == run_id
    assert collect(repository).pending_bytes == 0
    assert restored(repository, manifest.point_id) == new


def test_whoever_opens_the_repository_in_the_middle_of_a_sweep_brings_nothing_back(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New segments list packs with doomed entries for a moment; nobody takes them in."""
    first = back_up_bytes(repository, OLD)
    new = changed(OLD, 2, 12)
    second = back_up_bytes(repository, new)
    forget(repository, first, back_up_bytes(repository, random_disk(7, 300), "other"))
    write_segment, delete = repository.write_segment, repository.store.delete
    opened = []

    def open_another() -> None:
        with Repository.open(tmp_path / "r", options=SMALL_PACKS) as another:
            opened.append(another.index.entry_count())

    monkeypatch.setattr(
        repository, "write_segment", lambda *given: (write_segment(*given), open_another())
    )
    monkeypatch.setattr(repository.store, "delete", lambda name: (open_another(), delete(name)))
    outcome = collect_garbage(repository, GcOptions(rewrite_below=1.0))
    monkeypatch.undo()
    assert outcome.dropped_packs and outcome.rewritten_packs and len(opened) > 4
    open_another()
    check_repository(repository)
    for digest, _ in repository.index.entries():
        assert repository.chunks.load(digest)
    assert restored(repository, second.point_id) == new


def test_no_point_is_forgotten_while_its_roots_are_collected(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a reader could pin it after the sessions were listed, and be missed with it."""
    point = back_up_bytes(repository, OLD)
    ids = repository.points.ids
    forgetting = threading.Thread(target=lambda: forget(repository, point))

    def listing() -> list[RecoveryPointId]:
        forgetting.start()
        forgetting.join(0.2)
        assert forgetting.is_alive()
        return ids()

    monkeypatch.setattr(repository.points, "ids", listing)
    roots = roots_of_now(repository)
    forgetting.join(30)
    assert [root.digest for root in roots] == [point.disks[0].root]
    assert ids() == []


def test_packs_of_a_running_backup_are_left_alone(repository: Repository) -> None:
    """Published or not: what it has written so far is no garbage."""
    outcomes: list[GcOutcome] = []
    reader = PausingReader(OLD, lambda: outcomes.append(collect_garbage(repository)))
    first = back_up_reader(repository, reader, "web")
    run = repository.begin_run(repository.new_run_id(), RunContext.quiet())
    with run:
        image = run.images.write(MemoryReader(bytes(random_disk(8, 900))), None, None)
        outcomes.append(collect_garbage(repository))
        run.flush()
        outcomes.append(collect_garbage(repository))
        assert repository.chunks.load(image.root)
    assert [outcome.freed_bytes for outcome in outcomes] == [0, 0, 0]
    assert restored(repository, first.point_id) == OLD
    assert collect(repository).freed_bytes > 0  # it ended without a commit


def test_a_run_that_was_aborted_leaves_nothing(repository: Repository, tmp_path: Path) -> None:
    """Neither unlisted packs nor unfinished blobs outlive the next collection."""
    point = back_up_bytes(repository, OLD)
    collect(repository)
    size = packed_bytes(tmp_path / "r")
    with repository.begin_run(repository.new_run_id(), RunContext.quiet()) as run:
        run.images.write(MemoryReader(bytes(random_disk(8, 900))), None, None)
    collect(repository)
    assert packed_bytes(tmp_path / "r") == size
    assert restored(repository, point.point_id) == OLD


def test_a_damaged_pack_is_not_rewritten(repository: Repository, tmp_path: Path) -> None:
    """Its records move only if they are as written; the operator is told."""
    first = back_up_bytes(repository, OLD)
    back_up_bytes(repository, changed(OLD, 2, 12))
    forget(repository, first)
    options = GcOptions(rewrite_below=1.0)
    victim = plan_gc(repository, options).rewrite[0].pack_id
    places = repository.index.find_many([row[0] for row in repository.index.entries()])
    mark_live = [p for p in places.values() if p.pack_id == victim]
    path = next((tmp_path / "r" / PACKS).rglob(f"{victim.hex()}.pack"))
    data = bytearray(path.read_bytes())
    for place in mark_live:
        data[place.offset + place.stored_bytes - 1] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    outcome = collect_garbage(repository, options)
    assert "gc.damaged-pack" in {reason.code for reason in outcome.reasons}
    assert path.exists()


def test_many_small_packs_become_few(repository: Repository) -> None:
    """Nothing is freed, but opening and walking stay quick after thousands of small runs."""
    disk, points = OLD, {}
    for seed in range(20):
        disk = changed(disk, seed, 1)
        points[back_up_bytes(repository, disk).point_id] = disk
    before = len(all_packs(repository))
    collect(repository)
    assert len(all_packs(repository)) <= before * 0.6
    assert plan_gc(repository).packs == ()
    for point_id, expected in points.items():
        assert restored(repository, point_id) == expected


def test_a_higher_limit_rewrites_more(repository: Repository) -> None:
    """`rewrite_below` is the live share below which a pack is worth rewriting."""
    first = back_up_bytes(repository, OLD)
    back_up_bytes(repository, changed(OLD, 2, 12))
    forget(repository, first)
    low, high = (
        plan_gc(repository, GcOptions(rewrite_below=share)).freed_bytes for share in (0.0, 1.0)
    )
    assert low < high


def test_a_boot_profile_goes_with_its_point(repository: Repository) -> None:
    """Also when forgetting was cut off in between; the profile of a standing point stays."""
    first = back_up_bytes(repository, OLD)
    second = back_up_bytes(repository, changed(OLD, 2))
    for manifest in (first, second):
        save_profile(repository, manifest, {0: [Extent(0, 4096)]})
    repository.store.delete(point_name(first.point_id))  # as far as a killed forget got
    collect_garbage(repository)
    left = [blob.name for blob in repository.store.list(BOOT_PROFILES)]
    assert left == [profile_name(second.point_id)]
    assert load_profile(repository, second) == {0: [Extent(0, 4096)]}


def test_a_segment_that_a_backup_writes_meanwhile_is_not_called_damaged(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blob stands a moment before the index has it; that is no damage to warn of."""
    back_up_bytes(repository, OLD)
    insert = repository.index.insert
    reasons = []

    def planned_between(*args: Any, **kwargs: Any) -> None:
        reasons.append(plan_gc(repository).reasons)
        insert(*args, **kwargs)

    monkeypatch.setattr(repository.index, "insert", planned_between)
    back_up_bytes(repository, changed(OLD, 5))
    assert reasons
    assert not any(reasons)
