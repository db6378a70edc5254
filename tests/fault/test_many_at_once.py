"""Writers, a reader and garbage collection in processes of their own, all at once."""

from __future__ import annotations

import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from appliance.base.consistency import Consistency
from appliance.base.run_context import RunContext
from appliance.jobs.backup import back_up
from appliance.repository.errors import PointNotFoundError
from appliance.repository.gc import GcOptions, collect_garbage
from appliance.repository.repository import Repository, RepositoryOptions
from appliance.sources.frozen import FrozenDisk, FrozenVm
from tests.support.check_repository import check_repository, restored
from tests.support.memory_reader import MemoryReader
from tests.support.small_backups import overwrite, random_disk

OPTIONS = RepositoryOptions(pack_target_bytes=256 << 10, workers=1, cache_bytes=0)
POOL = [bytes(random_disk(seed, 120)) for seed in range(8)]
ROUNDS = int(os.environ.get("HOLDFAST_ROUNDS", "80"))


def start(work: Callable[[], None]) -> int:
    """Run `work` in a child; its exit code is 0 if it returned."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
    finally:
        os._exit(code)


def write(path: Path, vm: str, seed: int) -> None:
    """Back up disks made of the same pieces in another order, and forget all but three points."""
    source = random.Random(seed)
    with Repository.open(path, options=OPTIONS) as repository:
        for number in range(ROUNDS):
            disk = bytearray(b"".join(source.sample(POOL, 4)))
            overwrite(disk, source.randrange(1 << 30), 2)
            frozen = FrozenVm(
                name=vm,
                created_at=repository.clock.now(),
                consistency=Consistency.OFFLINE,
                source="image",
                disks=[FrozenDisk(number=0, label="d", reader=MemoryReader(disk))],
                hardware={"blake3": blake3(disk).hexdigest()},
            )
            back_up(repository, frozen, RunContext.quiet(), full=number % 4 == 3)
            for manifest in repository.points.list(vm)[:-3]:
                repository.points.forget(manifest.id)


def collect(path: Path, stop: Path) -> None:
    rounds = 0
    with Repository.open(path, options=OPTIONS) as repository:
        while not stop.exists():
            collect_garbage(repository, GcOptions(rewrite_below=1.0, wait_s=rounds % 2 * 0.5))
            rounds += 1
    assert rounds > 3


def read(path: Path, stop: Path) -> None:
    source = random.Random(1)
    checked = 0
    while not stop.exists():
        with Repository.open(path, options=OPTIONS) as repository:
            points = repository.points.list()
            for manifest in source.sample(points, min(3, len(points))):
                try:
                    data = restored(repository, manifest.point_id)
                except PointNotFoundError:
                    continue  # forgotten before it was opened
                assert blake3(data).hexdigest() == manifest.hardware["blake3"]
                checked += 1
        time.sleep(0.01)
    assert checked > 3


@pytest.mark.parametrize("seed", [1, 2])
def test_writers_a_reader_and_garbage_collection_do_not_hurt_each_other(
    tmp_path: Path, seed: int
) -> None:
    """Three processes write overlapping data, one collects, one reads: every point is right."""
    path, stop = tmp_path / "r", tmp_path / "stop"
    Repository.create(path)
    others = [start(lambda: collect(path, stop)), start(lambda: read(path, stop))]
    writers = [start(lambda n=n: write(path, f"vm{n}", seed * 10 + n)) for n in range(3)]
    try:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in writers]
    finally:
        stop.touch()
        codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in others]
    assert codes == [0] * 5
    with Repository.open(path, options=OPTIONS) as repository:
        points = repository.points.list()
        assert len(points) == 9
        check_repository(repository)
        assert collect_garbage(repository).pending_bytes == 0
        check_repository(repository)
        for manifest in points:
            data = restored(repository, manifest.point_id)
            assert blake3(data).hexdigest() == manifest.hardware["blake3"]
