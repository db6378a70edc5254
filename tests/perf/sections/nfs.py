"""Reads and writes over NFS, beside nfs-ganesha serving raw copies.

One client for both: `qemu-img bench` over nfs:// (libnfs). It takes steps of a fixed size, far
apart and over the whole disk, which stands for random access. The disks are dense, as in the
section `nbd`: the large one for cold reads, its first part, as a disk of its own, for warm ones.

- cold: a fresh server with empty caches of its own; the stored files are in the page cache.
- warm: the small disk has been read once.
- writes: 4 KiB, with a flush after each at depth 1 and after every 32 at depth 32. What we have
  acknowledged is on disk, flush or not; ganesha's is after the flush.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from appliance.base.units import GIB, KIB, MIB
from tests.perf import holdfast, sparse
from tests.perf.context import Bench, Figures, Results, alternate, prepared
from tests.perf.nfs_peers import bench as measure
from tests.perf.nfs_peers import ganesha
from tests.perf.sections.nbd import dense_disk
from tests.perf.table import Goal, Ratio, Row
from tests.support.network_namespace import NetworkNamespace, network_namespace

NAME = "nfs"
DEPTHS = (1, 32)
COLD_READS = {1: 4_000, 32: 12_000}
WARM_READS = {1: 20_000, 32: 60_000}
WRITES = {1: 1_500, 32: 15_000}
_STEP_BLOCKS = 40_503  # odd, and about the golden ratio of 64 Ki: every block is met once
Serve = Callable[[], AbstractContextManager[tuple[str, str]]]


def run(bench: Bench) -> list[Row]:
    large = 256 * MIB if bench.quick else GIB
    with bench.folder(NAME) as folder, network_namespace() as network:
        served = folder / "raw"
        served.mkdir()
        raw, small = served / "disk-0.raw", served / "disk-1.raw"
        large = dense_disk(raw, bench.images().disks, large)
        warm = large // 4 // MIB * MIB
        with raw.open("rb") as source, small.open("wb") as target:
            for _ in range(warm // MIB):
                target.write(source.read(MIB))
        stored = prepared(lambda: _backup(folder / "repository", [raw, small]))
        sparse.warm(raw)
        sparse.warm(small)

        @contextmanager
        def ours(*, writable: bool = False) -> Iterator[tuple[str, str]]:
            repository, point_id = stored()
            home = folder / "home"
            with holdfast.nfs_export(
                network, repository, point_id, home, cache_bytes=2 * warm, writable=writable
            ) as uri:
                yield f"{uri}/disk-0.raw", f"{uri}/disk-1.raw"
            shutil.rmtree(home, ignore_errors=True)

        @contextmanager
        def theirs() -> Iterator[tuple[str, str]]:
            work = folder / "ganesha"
            work.mkdir()
            with ganesha(network, served, work) as uri:
                yield f"{uri}/disk-0.raw", f"{uri}/disk-1.raw"
            shutil.rmtree(work)

        series = Series(network, large, warm)
        results = alternate(
            bench.rounds,
            {
                "holdfast": lambda _: {
                    **series.reads(ours),
                    **series.writes(lambda: ours(writable=True)),
                },
                "nfs-ganesha": lambda _: {**series.reads(theirs), **series.writes(theirs)},
            },
        )
    return _rows(results)


class Series:
    """What every server gets."""

    def __init__(self, network: NetworkNamespace, large_bytes: int, warm_bytes: int) -> None:
        self._network = network
        self._large_bytes = large_bytes
        self._warm_bytes = warm_bytes

    def reads(self, serve: Serve) -> Figures:
        figures: dict[str, float] = {}
        for depth in DEPTHS:
            with serve() as (large, _):
                figures[f"cold {depth}"] = self._scattered(large, COLD_READS[depth], depth)
            with serve() as (large, _):
                cold = self._sequential(large, self._large_bytes // MIB, depth)
                figures[f"cold sequential {depth}"] = cold
        with serve() as (_, small):
            self._sequential(small, self._warm_bytes // MIB, 1)
            for depth in DEPTHS:
                figures[f"warm {depth}"] = self._scattered(small, WARM_READS[depth], depth)
                twice = 4 * self._warm_bytes // MIB
                figures[f"warm sequential {depth}"] = self._sequential(small, twice, depth)
        return figures

    def writes(self, serve: Serve) -> Figures:
        figures: dict[str, float] = {}
        with serve() as (_, small):
            for depth in DEPTHS:
                figures[f"write {depth}"] = self._scattered(small, WRITES[depth], depth, depth)
        return figures

    def _scattered(self, uri: str, count: int, depth: int, flush_every: int = 0) -> float:
        return measure(
            self._network,
            uri,
            count=count,
            depth=depth,
            size_bytes=4 * KIB,
            step_bytes=_STEP_BLOCKS * 4 * KIB,
            flush_every=flush_every,
        )

    def _sequential(self, uri: str, count: int, depth: int) -> float:
        return measure(self._network, uri, count=count, depth=depth, size_bytes=MIB, step_bytes=MIB)


def _backup(repository: Path, disks: list[Path]) -> tuple[Path, str]:
    holdfast.init(repository)
    return repository, holdfast.backup(repository, "dense", disks)[1]


def _rows(results: Results) -> list[Row]:
    def row(measure: str, unit: str, figure: str, limit: float | None) -> Row:
        return Row(
            section=NAME,
            measure=measure,
            unit=unit,
            ours=results.value("holdfast", figure),
            peer="nfs-ganesha",
            theirs=results.value("nfs-ganesha", figure),
            divide=Ratio.OURS_BY_PEER,
            goal=None if limit is None else Goal(limit=limit),
        )

    rows = []
    for depth, limit in zip(DEPTHS, (1, 2), strict=True):
        rows.append(
            row(f"4 KiB scattered reads, depth {depth}, cold", "IOPS", f"cold {depth}", None)
        )
        rows.append(
            row(f"4 KiB scattered reads, depth {depth}, warm", "IOPS", f"warm {depth}", limit)
        )
        rows.append(row(f"4 KiB writes, flush every {depth}", "IOPS", f"write {depth}", None))
    for depth in DEPTHS:
        for state, limit in (("cold", None), ("warm", 0.7)):
            measure = f"1 MiB sequential reads, depth {depth}, {state}"
            rows.append(row(measure, "MiB/s", f"{state} sequential {depth}", limit))
    return rows
