"""An incremental costs what changed, and an unchanged disk is read at the speed of reading.

The change: random 64 KiB extents of the first 8 GiB, 1 % of it, overwritten in place with data
that the repository has not seen (taken from the third disk of the set). The same data and the same
change stand on an 8 GiB disk and on one of 1 TiB. Each round starts from a new repository that
holds the disk as it was (not timed).
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from appliance.base.units import GIB, KIB, TIB
from tests.perf import bare, holdfast, sparse
from tests.perf.context import Bench, Figures, alternate
from tests.perf.table import Goal, Ratio, Row

NAME = "incremental"
EXTENT_BYTES = 64 * KIB
SMALL_BYTES = 8 * GIB
LARGE_BYTES = TIB


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangedDisk:
    before: Path
    after: Path
    changes: Path  # the list for --changed


def run(bench: Bench) -> list[Row]:
    images = bench.images()
    holdfast.command()
    extents = changed_extents(bench.random(NAME), SMALL_BYTES, EXTENT_BYTES)
    with bench.folder(NAME) as folder:
        source, donor = images.disks[0], images.disks[2]
        disks = {
            name: make_disk(folder, name, source, donor, size, extents)
            for name, size in (("8 GiB", SMALL_BYTES), ("1 TiB", LARGE_BYTES))
        }
        results = alternate(
            bench.rounds,
            {
                "8 GiB": lambda number: _incremental(bench, disks["8 GiB"], number),
                "1 TiB": lambda number: _incremental(bench, disks["1 TiB"], number),
                "rescan": lambda number: _rescan(bench, images.disks, number),
            },
        )
    small, large = results.value("8 GiB", "seconds"), results.value("1 TiB", "seconds")
    changed_mib = len(extents) * EXTENT_BYTES / 2**20
    return [
        Row(
            section=NAME,
            measure=f"{changed_mib:.0f} MiB changed on 1 TiB, against 8 GiB",
            unit="s",
            ours=large,
            peer="holdfast, 8 GiB disk",
            theirs=small,
            divide=Ratio.OURS_BY_PEER,
            goal=Goal(limit=1.2, at_most=True),
        ),
        Row(
            section=NAME,
            measure="rescan of three unchanged disks",
            unit="GB/s of data",
            ours=results.value("rescan", "gb_per_s"),
            divide=Ratio.OURS,
            goal=Goal(limit=1.5),
        ),
    ]


def changed_extents(rng: random.Random, size_bytes: int, extent_bytes: int) -> list[int]:
    """Sorted starts of distinct aligned extents that make 1 % of the disk."""
    count = size_bytes // extent_bytes
    return sorted(start * extent_bytes for start in rng.sample(range(count), count // 100))


def make_disk(
    folder: Path, name: str, source: Path, donor: Path, size_bytes: int, extents: list[int]
) -> ChangedDisk:
    """The disk before and after the change, both in the page cache."""
    stem = name.replace(" ", "")
    before, after, changes = (folder / f"{stem}.{kind}" for kind in ("before", "after", "changes"))
    sparse.copy(source, before, size_bytes)
    sparse.copy(source, after, size_bytes)
    fresh = islice(bare.pieces(donor), len(extents))
    with after.open("r+b") as file:
        for start, piece in zip(extents, fresh, strict=True):
            file.seek(start)
            file.write(piece)
    listed = [{"start": start, "length": EXTENT_BYTES} for start in extents]
    changes.write_text(json.dumps(listed))
    sparse.warm(before, after)
    return ChangedDisk(before=before, after=after, changes=changes)


def _incremental(bench: Bench, disk: ChangedDisk, number: int) -> Figures:
    with bench.folder(f"{disk.before.stem}-{number}") as folder:
        repository, path = folder / "repository", disk.before.with_suffix(".raw")
        holdfast.init(repository)
        sparse.swap_in(disk.before, path)  # one path for both states, as a disk has
        holdfast.backup(repository, "vm", [path])
        sparse.swap_in(disk.after, path)
        took, _ = holdfast.backup(repository, "vm", [path], changed=disk.changes)
        return {"seconds": took.seconds, "new_mib": holdfast.new_bytes(took) / 2**20}


def _rescan(bench: Bench, disks: list[Path], number: int) -> Figures:
    sparse.warm(*disks)
    with bench.folder(f"rescan-{number}") as folder:
        repository = folder / "repository"
        holdfast.init(repository)
        holdfast.backup(repository, "set", disks)
        took, _ = holdfast.backup(repository, "set", disks)
        rate = sparse.data_bytes(*disks) / took.seconds / 1e9
        return {"seconds": took.seconds, "gb_per_s": rate}
