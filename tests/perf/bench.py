"""`make bench`: one run, one table of medians and ratios. No figure here is a test.

Sections run one after another, programs within a section alternate. What is missing (a program, a
part of the product) is named below the table and does not stop the run.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.perf import images, peers
from tests.perf.context import Bench
from tests.perf.programs import NotMeasuredError
from tests.perf.table import Missing, Row, document, markdown

SECTIONS = {
    "first-backup": "tests.perf.sections.first_backup",
    "incremental": "tests.perf.sections.incremental",
    "restore": "tests.perf.sections.restore",
    "disk-files": "tests.perf.sections.disk_files",
    "nbd": "tests.perf.sections.nbd",
    "nfs": "tests.perf.sections.nfs",
    "boot": "tests.perf.sections.boot",
    "instant": "tests.perf.sections.instant",
    "memory": "tests.perf.sections.memory",
    "index": "tests.perf.bench_index",
    "datastore": "tests.perf.sections.datastore",
    "smb": "tests.perf.sections.smb",
    "dashboard": "tests.perf.sections.dashboard",
    "inventory": "tests.perf.sections.inventory",
}


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every block cleans up
    print(f"machine: {json.dumps(machine())}", flush=True)
    print(f"seed: {options.seed}", flush=True)
    rows: list[Row] = []
    with _work_folder(options.work) as work:
        for name in options.section or SECTIONS:
            rows += _section(
                name,
                Bench(work=work, rounds=options.rounds, quick=options.quick, seed=options.seed),
            )
    print(f"\n{markdown(rows)}\n{_footnote(options.rounds)}")
    if options.json:
        result = {"machine": machine(), "seed": options.seed, "rows": document(rows)}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def machine() -> dict[str, object]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "programs": peers.versions(),
    }


def _section(name: str, bench: Bench) -> list[Row]:
    print(f"\n{name}", flush=True)
    started = time.perf_counter()
    try:
        rows: list[Row] = importlib.import_module(SECTIONS[name]).run(bench)
    except NotMeasuredError as reason:
        rows = [Row(section=name, measure="all", unit="", ours=Missing(reason=str(reason)))]
    load = os.getloadavg()[0]  # above 2 to 3 on two cores: others were at work, distrust times
    print(f"  {time.perf_counter() - started:.0f} s, load average {load:.1f}", flush=True)
    return rows


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.perf.bench", description=__doc__)
    parser.add_argument("--section", action="append", choices=list(SECTIONS), metavar="NAME")
    parser.add_argument("--rounds", type=int, help="samples per figure (3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="less data, one round: a smoke run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every sample to FILE")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for temporary data")
    parser.add_argument("--seed", type=int, help="repeat the random choices of an earlier run")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    if options.seed is None:
        options.seed = random.randrange(1 << 31)
    return options


@contextlib.contextmanager
def _work_folder(parent: Path | None) -> Iterator[Path]:
    """A new folder on the file system of the images, removed at the end."""
    parent = parent or images.cache_folder() / "bench-work"
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _footnote(rounds: int) -> str:
    return (
        f"Medians of {rounds} rounds; programs alternate within a round, a sync before each; new "
        "repositories per round; sources, repositories and served files are in the page cache; "
        "ratio: how many times as fast (for sizes, costs and memory: share of the peer's figure)."
    )


if __name__ == "__main__":
    sys.exit(main())
