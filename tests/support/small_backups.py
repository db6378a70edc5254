"""Backups of small disks in memory, for tests of what happens to them afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime

from appliance.base.consistency import Consistency
from appliance.base.run_context import RunContext
from appliance.blocks.extents import Extent
from appliance.jobs.backup import back_up
from appliance.repository.format import BLOCK_BYTES
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository, RepositoryOptions
from appliance.sources.frozen import FrozenDisk, FrozenVm
from tests.support.memory_reader import MemoryReader

SMALL_PACKS = RepositoryOptions(pack_target_bytes=128 << 10, workers=1)


def frozen(
    data: bytes | bytearray, vm: str = "web", changed: Sequence[Extent] | None = None
) -> FrozenVm:
    return FrozenVm(
        name=vm,
        created_at=datetime.now(UTC),
        consistency=Consistency.OFFLINE,
        source="image",
        disks=[
            FrozenDisk(number=0, label="disk", reader=MemoryReader(bytes(data)), changed=changed)
        ],
    )


def back_up_bytes(
    repository: Repository,
    data: bytes | bytearray,
    vm: str = "web",
    changed: Sequence[Extent] | None = None,
    *,
    full: bool = False,
) -> Manifest:
    outcome = back_up(repository, frozen(data, vm, changed), RunContext.quiet(), full=full)
    return outcome.manifest


def random_disk(seed: int, blocks: int) -> bytearray:
    """Runs of incompressible data and of zeros."""
    source = random.Random(seed)
    disk = bytearray()
    while len(disk) < blocks * BLOCK_BYTES:
        run = source.randrange(1, 40)
        disk += (
            bytes(run * BLOCK_BYTES)
            if source.random() < 0.2
            else source.randbytes(run * BLOCK_BYTES)
        )
    return disk[: blocks * BLOCK_BYTES]


def overwrite(disk: bytearray, seed: int, places: int = 3) -> list[Extent]:
    """Change a few whole blocks; return where."""
    source = random.Random(seed)
    extents = []
    for _ in range(places):
        length = source.randrange(1, 12) * BLOCK_BYTES
        offset = source.randrange((len(disk) - length) // BLOCK_BYTES) * BLOCK_BYTES
        disk[offset : offset + length] = source.randbytes(length)
        extents.append(Extent(offset, length))
    return extents
