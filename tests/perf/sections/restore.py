"""Getting whole disks back: to raw files, and read through NBD with nbdcopy.

Every figure is the sum over the three disks of the set. Repositories and qcow2 files are in the
page cache; outputs are new sparse files on the same file system. `until on disk` adds a sync,
because some of the programs flush what they wrote and others leave that to the kernel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from tests.perf import holdfast, peers
from tests.perf.context import Bench, Figures, Results, alternate, new_folder, prepared
from tests.perf.peers import Borg
from tests.perf.programs import sync
from tests.perf.table import Goal, Row

NAME = "restore"
Serve = Callable[[int, Path], AbstractContextManager[str]]


def run(bench: Bench) -> list[Row]:
    disks = bench.images().disks
    with bench.folder("restore") as folder:
        borg = prepared(lambda: _borg(folder / "borg", disks))
        qcow2 = prepared(lambda: _qcow2(folder, disks))
        ours = prepared(lambda: _holdfast(folder / "repository", disks))
        output = folder / "output"

        def restore_ours() -> float:
            repository, point_id = ours()
            return sum(
                holdfast.restore(repository, point_id, number, output / f"{number}.raw").seconds
                for number in range(len(disks))
            )

        def convert() -> float:
            files = enumerate(qcow2())
            return sum(peers.convert_to_raw(f, output / f"{n}.raw").seconds for n, f in files)

        def export_ours(number: int, socket: Path) -> AbstractContextManager[str]:
            repository, point_id = ours()
            return holdfast.nbd_export(repository, point_id, number, socket)

        def export_peer(number: int, socket: Path) -> AbstractContextManager[str]:
            return peers.qemu_nbd(qcow2()[number], "qcow2", socket)

        count = len(disks)
        results = alternate(
            bench.rounds,
            {
                "holdfast": lambda _: _into(output, restore_ours),
                "qemu-img convert": lambda _: _into(output, convert),
                "borg extract": lambda _: _into(
                    output, lambda: borg().extract("first", output).seconds
                ),
                "holdfast nbd": lambda _: _copies(export_ours, count, output),
                "qemu-nbd zstd qcow2": lambda _: _copies(export_peer, count, output),
            },
        )
    return _rows(results)


def _rows(results: Results) -> list[Row]:
    def row(
        measure: str, ours: tuple[str, str], peer: tuple[str, str], limit: float | None = None
    ) -> Row:
        return Row(
            section=NAME,
            measure=measure,
            unit="s",
            ours=results.value(*ours),
            peer=peer[0],
            theirs=results.value(*peer),
            goal=None if limit is None else Goal(limit=limit),
        )

    file, null = ("holdfast nbd", "file"), ("holdfast nbd", "null")
    rows = []
    for measure, figure in (("to raw files", "seconds"), ("until on disk", "synced")):
        ours = ("holdfast", figure)
        goals = (1, 2) if figure == "seconds" else (None, None)
        rows.append(row(measure, ours, ("qemu-img convert", figure), goals[0]))
        rows.append(row(measure, ours, ("borg extract", figure), goals[1]))
    rows.append(row("nbdcopy to null", null, ("qemu-nbd zstd qcow2", "null")))
    rows.append(row("nbdcopy to files", file, ("qemu-nbd zstd qcow2", "file")))
    rows.append(row("nbdcopy to files", file, ("qemu-img convert", "seconds"), 1))
    rows.append(row("nbdcopy to files", file, ("borg extract", "seconds"), 2))
    return rows


def _into(output: Path, restore: Callable[[], float]) -> Figures:
    """Time one restore of the set into an empty folder, then the sync that makes it durable."""
    with new_folder(output):
        seconds = restore()
        started = time.perf_counter()
        sync()
        return {"seconds": seconds, "synced": seconds + time.perf_counter() - started}


def _copies(serve: Serve, count: int, output: Path) -> Figures:
    """nbdcopy of each disk from a fresh server, once to nowhere and once to a file."""
    figures = {"null": 0.0, "file": 0.0}
    with new_folder(output):
        for number in range(count):
            for name, target in (("null", "null:"), ("file", str(output / f"{number}.raw"))):
                with serve(number, output.parent / "nbd.sock") as uri:
                    figures[name] += peers.nbdcopy(uri, target).seconds
    return figures


def _borg(home: Path, disks: list[Path]) -> Borg:
    home.mkdir()
    borg = Borg(home)
    borg.create("first", disks)
    return borg


def _qcow2(folder: Path, disks: list[Path]) -> list[Path]:
    made = []
    for disk in disks:
        made.append(folder / f"{disk.stem}.qcow2")
        peers.zstd_qcow2(disk, made[-1])
    return made


def _holdfast(repository: Path, disks: list[Path]) -> tuple[Path, str]:
    holdfast.init(repository)
    return repository, holdfast.backup(repository, "set", disks)[1]
