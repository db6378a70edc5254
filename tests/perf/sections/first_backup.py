"""First backup of the image set into an empty repository, and how close that is to bare metal.

One command per program and round takes all three disks. Sources are in the page cache; repositories
are new and on the same file system.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.perf import holdfast, programs, sparse
from tests.perf.context import Bench, Figures, alternate
from tests.perf.holdfast import new_bytes
from tests.perf.peers import Borg, Restic
from tests.perf.programs import Run, tree_bytes
from tests.perf.table import Goal, Ratio, Row

NAME = "first-backup"


def run(bench: Bench) -> list[Row]:
    disks = bench.images().disks
    sparse.warm(*disks)
    print(f"  data in the set: {sparse.data_bytes(*disks) / 2**20:.0f} MiB", flush=True)

    def ours(number: int) -> Figures:
        holdfast.command()
        with bench.folder(f"holdfast-{number}") as folder:
            repository = folder / "repository"
            holdfast.init(repository)
            took, _ = holdfast.backup(repository, "set", disks)
            rate = new_bytes(took) / took.seconds / 1e6
            return {**_figures(took, repository), "unique_mb_per_s": rate}

    def borg(number: int, *, skip_holes: bool) -> Figures:
        with bench.folder(f"borg-{number}-{skip_holes}") as folder:
            peer = Borg(folder, sparse=skip_holes)
            took = peer.create("first", disks)
            return _figures(took, peer.repository)

    def restic(number: int) -> Figures:
        with bench.folder(f"restic-{number}") as folder:
            peer = Restic(folder)
            took = peer.backup(disks)
            return _figures(took, peer.repository)

    results = alternate(
        bench.rounds,
        {
            "holdfast": ours,
            "borg": lambda number: borg(number, skip_holes=False),
            "borg --sparse": lambda number: borg(number, skip_holes=True),
            "restic": restic,
            "bare": lambda _: bare(disks),
        },
    )

    def row(measure: str, unit: str, figure: str, peer: str, **more: object) -> Row:
        return Row(
            section=NAME,
            measure=measure,
            unit=unit,
            ours=results.value("holdfast", figure),
            peer=peer,
            theirs=results.value(peer, "mb_per_s" if peer == "bare" else figure),
            **more,  # type: ignore[arg-type]
        )

    return [
        row("three disks", "s", "seconds", "borg", goal=Goal(limit=5)),
        row("three disks", "s", "seconds", "borg --sparse", goal=Goal(limit=5)),
        row("three disks", "s", "seconds", "restic", goal=Goal(limit=15)),
        # Says what the work costs, also where something else keeps the cores busy.
        row("processor time, three disks", "s", "cpu_seconds", "borg"),
        row("processor time, three disks", "s", "cpu_seconds", "borg --sparse"),
        row("processor time, three disks", "s", "cpu_seconds", "restic"),
        row("stored", "MiB", "stored_mib", "borg", divide=Ratio.OURS_BY_PEER),
        row(
            "stored",
            "MiB",
            "stored_mib",
            "restic",
            divide=Ratio.OURS_BY_PEER,
            goal=Goal(limit=1, at_most=True),
        ),
        row(
            "unique bytes per second; BLAKE3 + zstd-1, 2 threads",
            "MB/s",
            "unique_mb_per_s",
            "bare",
            divide=Ratio.OURS_BY_PEER,
            goal=Goal(limit=0.7),
        ),
    ]


def _figures(took: Run, repository: Path) -> dict[str, float]:
    return {
        "seconds": took.seconds,
        "cpu_seconds": took.cpu_seconds,
        "stored_mib": tree_bytes(repository) / 2**20,
    }


def bare(disks: list[Path]) -> Figures:
    took = programs.run([sys.executable, "-m", "tests.perf.bare", *disks])
    figures: dict[str, float] = json.loads(took.stdout)
    return figures
