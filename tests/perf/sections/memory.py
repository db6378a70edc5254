"""Peak memory of backing up a 62 TiB sparse disk with 1 GiB of data.

ext4 stops at 16 TiB per file, so the disk stands where a file may be that large: the work folder or
else /dev/shm. The data is random (nothing deduplicates or compresses) in 1 MiB runs spread over the
whole disk, so that each run has a segment of its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.base.units import MIB, TIB
from tests.perf import holdfast
from tests.perf.context import Bench, Figures, alternate
from tests.perf.programs import NotMeasuredError
from tests.perf.table import Goal, Ratio, Row

NAME = "memory"
DISK_BYTES = 62 * TIB
RUN_BYTES = MIB
LIMIT_MIB = 400


def run(bench: Bench) -> list[Row]:
    holdfast.command()
    runs = 64 if bench.quick else 1024
    with _huge_file(bench.work) as disk:
        _fill(disk, bench, runs)

        def backup(number: int) -> Figures:
            with bench.folder(f"memory-{number}") as folder:
                holdfast.init(folder / "repository")
                took, _ = holdfast.backup(folder / "repository", "huge", [disk])
                return {"peak_mib": took.peak_rss_bytes / MIB, "seconds": took.seconds}

        results = alternate(bench.rounds, {"holdfast": backup})
    name = f"first backup of 62 TiB with {runs} MiB of data"
    return [
        Row(
            section=NAME,
            measure=f"{name}, peak RSS",
            unit="MiB",
            ours=results.value("holdfast", "peak_mib"),
            divide=Ratio.OURS,
            goal=Goal(limit=LIMIT_MIB, at_most=True),
        ),
        Row(
            section=NAME,
            measure=name,
            unit="s",
            ours=results.value("holdfast", "seconds"),
            divide=Ratio.OURS,
        ),
    ]


def _fill(disk: Path, bench: Bench, runs: int) -> None:
    rng = bench.random(NAME)
    with disk.open("r+b") as file:
        for start in sorted(rng.sample(range(DISK_BYTES // RUN_BYTES), runs)):
            file.seek(start * RUN_BYTES)
            file.write(rng.randbytes(RUN_BYTES))


@contextmanager
def _huge_file(work: Path) -> Iterator[Path]:
    for parent in (work, Path("/dev/shm")):
        with tempfile.NamedTemporaryFile(prefix="holdfast-bench-", dir=parent) as file:
            try:
                file.truncate(DISK_BYTES)
            except OSError:
                continue  # EFBIG
            yield Path(file.name)
            return
    raise NotMeasuredError("no file system here takes a file of 62 TiB")
