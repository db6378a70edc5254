"""Reads over NBD with fio: cold, warm and sequential.

The disk is dense: the unique non-zero 64 KiB pieces of the image set one after another, so that
every offset falls into real data (zero pages flatter a server). Unix sockets, read-only, one client
on the machine of the server.

- cold: a fresh server with empty caches of its own; a bounded number of reads spread over the whole
  disk, so that few hit a piece twice. The stored files are in the page cache for both.
- warm: the first part of the disk has been read once, then random reads inside it.
- sequential: 1 MiB reads, of the whole disk by a fresh server (cold), and of the part read before.

The same seed gives every server the same offsets.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import islice
from pathlib import Path

from appliance.base.units import GIB, KIB, MIB
from tests.perf import bare, holdfast, peers, sparse
from tests.perf.context import Bench, Figures, Results, alternate, prepared
from tests.perf.table import Goal, Ratio, Row

NAME = "nbd"
READ_BYTES = 4 * KIB
COLD_READS = {1: 4_000, 32: 12_000}
WARM_SECONDS = 3
DEPTHS = (1, 32)
SEQUENTIAL_DEPTHS = (1, 4)
Serve = Callable[[Path], AbstractContextManager[str]]


def run(bench: Bench) -> list[Row]:
    size = 256 * MIB if bench.quick else GIB
    warm = size // 4
    disks = bench.images().disks
    with bench.folder(NAME) as folder:
        raw, qcow2, socket = folder / "dense.raw", folder / "dense.qcow2", folder / "nbd.sock"
        size = dense_disk(raw, disks, size)
        packed = prepared(lambda: peers.zstd_qcow2(raw, qcow2))
        stored = prepared(lambda: _backup(folder / "repository", raw))
        sparse.warm(raw)

        def ours(socket: Path) -> AbstractContextManager[str]:
            repository, point_id = stored()
            return holdfast.nbd_export(repository, point_id, 0, socket, cache_bytes=2 * warm)

        def compressed(socket: Path) -> AbstractContextManager[str]:
            packed()
            return peers.qemu_nbd(qcow2, "qcow2", socket)

        series = Series(socket=socket, size_bytes=size, warm_bytes=warm, seed=bench.seed)
        results = alternate(
            bench.rounds,
            {
                "holdfast": lambda _: {
                    **series.cold(ours),
                    **series.warm(ours),
                    **series.sequential(ours),
                },
                "qemu-nbd zstd qcow2": lambda _: {
                    **series.cold(compressed),
                    **series.warm(compressed),
                    **series.sequential(compressed),
                },
                "nbdkit file": lambda _: {
                    **series.warm(partial(peers.nbdkit_file, raw)),
                    **series.sequential(partial(peers.nbdkit_file, raw)),
                },
                "qemu-nbd raw": lambda _: {
                    **series.warm(partial(peers.qemu_nbd, raw, "raw")),
                    **series.sequential(partial(peers.qemu_nbd, raw, "raw")),
                },
            },
        )
    return _rows(results)


def dense_disk(output: Path, disks: list[Path], size_bytes: int) -> int:
    """Write distinct real pieces up to `size_bytes`; return how much there was, in whole pieces."""
    seen: set[bytes] = set()

    def fresh(piece: bytes) -> bool:
        digest = bare.piece_digest(piece)
        new = len(piece) == bare.PIECE_BYTES and digest not in seen
        seen.add(digest)
        return new

    every = (piece for disk in disks for piece in bare.pieces(disk))
    with output.open("wb") as file:
        for piece in islice(filter(fresh, every), size_bytes // bare.PIECE_BYTES):
            file.write(piece)
        return file.tell()


class Series:
    """The reads that every server gets; each method starts servers of its own."""

    def __init__(self, *, socket: Path, size_bytes: int, warm_bytes: int, seed: int) -> None:
        self._socket = socket
        self._size = f"--size={size_bytes}"
        self._warm = f"--size={warm_bytes}"
        self._seed = f"--randseed={seed}"

    def cold(self, serve: Serve) -> Figures:
        figures: dict[str, float] = {}
        for depth in DEPTHS:
            amount = f"--io_size={COLD_READS[depth] * READ_BYTES}"
            with serve(self._socket) as uri:
                read = peers.fio(uri, *self._random(depth), self._size, amount)
            figures[f"cold {depth}"] = read["iops"]
        return figures

    def warm(self, serve: Serve) -> Figures:
        figures: dict[str, float] = {}
        with serve(self._socket) as uri:
            peers.fio(uri, "--rw=read", "--bs=1M", self._warm)
            for depth in DEPTHS:
                timed = ["--time_based", f"--runtime={WARM_SECONDS}"]
                read = peers.fio(uri, *self._random(depth), self._warm, *timed)
                figures[f"warm {depth}"] = read["iops"]
        return figures

    def sequential(self, serve: Serve) -> Figures:
        figures: dict[str, float] = {}
        for depth in SEQUENTIAL_DEPTHS:
            words = ["--rw=read", "--bs=1M", f"--iodepth={depth}"]
            with serve(self._socket) as uri:
                figures[f"cold sequential {depth}"] = peers.fio(uri, *words, self._size)[
                    "mib_per_s"
                ]
            with serve(self._socket) as uri:
                peers.fio(uri, *words, self._warm)
                timed = [self._warm, "--time_based", f"--runtime={WARM_SECONDS}"]
                figures[f"warm sequential {depth}"] = peers.fio(uri, *words, *timed)["mib_per_s"]
        return figures

    def _random(self, depth: int) -> list[str]:
        options = ["--rw=randread", f"--bs={READ_BYTES}", f"--iodepth={depth}"]
        return [*options, "--norandommap", self._seed]


def _backup(repository: Path, raw: Path) -> tuple[Path, str]:
    holdfast.init(repository)
    return repository, holdfast.backup(repository, "dense", [raw])[1]


def _rows(results: Results) -> list[Row]:
    def row(measure: str, unit: str, figure: str, peer: str, limit: float | None) -> Row:
        return Row(
            section=NAME,
            measure=measure,
            unit=unit,
            ours=results.value("holdfast", figure),
            peer=peer,
            theirs=results.value(peer, figure),
            divide=Ratio.OURS_BY_PEER,
            goal=None if limit is None else Goal(limit=limit),
        )

    rows = []
    for depth in DEPTHS:
        name = f"4 KiB random, depth {depth}"
        rows.append(row(f"{name}, cold", "IOPS", f"cold {depth}", "qemu-nbd zstd qcow2", 1))
        rows.append(row(f"{name}, warm", "IOPS", f"warm {depth}", "nbdkit file", 0.8))
        rows.append(row(f"{name}, warm", "IOPS", f"warm {depth}", "qemu-nbd raw", None))
        rows.append(row(f"{name}, warm", "IOPS", f"warm {depth}", "qemu-nbd zstd qcow2", None))
    for depth in SEQUENTIAL_DEPTHS:
        for state in ("cold", "warm"):
            name, figure = (
                f"1 MiB sequential, depth {depth}, {state}",
                f"{state} sequential {depth}",
            )
            rows.append(row(name, "MiB/s", figure, "qemu-nbd raw", 1))
            rows.append(row(name, "MiB/s", figure, "nbdkit file", None))
            rows.append(row(name, "MiB/s", figure, "qemu-nbd zstd qcow2", None))
    return rows
