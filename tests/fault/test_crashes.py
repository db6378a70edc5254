"""Killed at any write, link, fsync or removal: all committed points are there, and work goes on."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.repository.errors import RepositoryNotFoundError
from appliance.repository.gc import GcOptions, collect_garbage, plan_gc
from appliance.repository.repository import Repository, RepositoryOptions
from appliance.repository.verify import check
from tests.support import crash_driver
from tests.support.check_repository import check_repository, packed_bytes, restored
from tests.support.crash_driver import Ended, Log
from tests.support.small_backups import back_up_bytes, overwrite, random_disk

TINY_PACKS = RepositoryOptions(pack_target_bytes=96 << 10, workers=1)
MOST = int(os.environ.get("HOLDFAST_CRASH_POINTS", "300"))  # per mode; 0: every one
FIRST = bytes(random_disk(1, 110))
SECOND_DISK = bytearray(FIRST)
CHANGED = overwrite(SECOND_DISK, 2, 6)
SECOND = bytes(SECOND_DISK)
THIRD = bytes(random_disk(4, 60))
DISKS = {"first": FIRST, "second": SECOND, "third": THIRD}


def scenario(path: Path, log: Log) -> None:
    Repository.create(path)
    with Repository.open(path, options=TINY_PACKS) as repository:
        first = back_up_bytes(repository, FIRST)
        log(f"committed {first.point_id} first")
        second = back_up_bytes(repository, SECOND, changed=CHANGED)
        log(f"committed {second.point_id} second")
        log(f"forgetting {first.point_id}")
        repository.points.forget(first.id)
        collect_garbage(repository, GcOptions(rewrite_below=1.0))
        third = back_up_bytes(repository, THIRD, "other")
        log(f"committed {third.point_id} third")
        check(repository, read_data=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is room: thousands of fsyncs."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=base, prefix="holdfast-crash-") as name:
        yield Path(name)


def kill_points(folder: Path, seed: int) -> list[int]:
    calls = crash_driver.run(scenario, folder).calls
    assert calls > 100
    every = range(1, calls + 1)
    chosen = list(every) if not MOST else random.Random(seed).sample(every, min(MOST, calls))
    print(f"seed {seed}: {len(chosen)} of {calls} calls")
    return sorted(chosen)


@pytest.mark.parametrize("power_cut", [False, True], ids=["kill", "power cut"])
def test_killed_at_any_call_nothing_committed_is_lost(folder: Path, power_cut: bool) -> None:
    """Every committed point restores, none is half, and backup, gc and check go on cleanly."""
    seed = int(os.environ.get("HOLDFAST_SEED", "0")) or random.randrange(1 << 32)
    (folder / "count").mkdir()
    for kill_at in kill_points(folder / "count", seed):
        root = folder / "run"
        root.mkdir()
        ended = crash_driver.run(
            scenario,
            root,
            kill_at=kill_at,
            power_cut_seed=seed + kill_at if power_cut else None,
        )
        try:
            assert_sound(root / "r", ended)
        except BaseException:
            print(f"seed {seed}, killed at call {kill_at}, after {ended.events}")
            raise
        shutil.rmtree(root)


def assert_sound(path: Path, ended: Ended) -> None:
    committed = dict(e.split()[1:] for e in ended.events if e.startswith("committed"))
    forgotten = {e.split()[1] for e in ended.events if e.startswith("forgetting")}
    try:
        repository = Repository.open(path, options=TINY_PACKS)
    except RepositoryNotFoundError:
        assert not committed
        Repository.create(path)  # half of a repository is none, and no obstacle
        repository = Repository.open(path, options=TINY_PACKS)
    with repository:
        points = set(repository.points.ids())
        assert committed.keys() - forgotten <= points
        check_repository(repository)
        for point_id in points:
            data = restored(repository, point_id)
            assert (
                data == DISKS[committed[point_id]]
                if point_id in committed
                else (data in DISKS.values())
            )
        again = back_up_bytes(repository, SECOND)
        collect_garbage(repository)
        check_repository(repository)
        for point_id in points:
            assert restored(repository, point_id) in DISKS.values()
        assert restored(repository, again.point_id) == SECOND
        plan = plan_gc(repository)
        assert plan.packs == ()
        assert packed_bytes(path) == sum(pack.size_bytes for pack in repository.index.packs())
