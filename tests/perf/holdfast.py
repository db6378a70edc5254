"""The product as its users start it: the command line, nothing else."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.perf import programs
from tests.perf.images import ROOT
from tests.perf.programs import NotMeasuredError, Run

# The code of this checkout, also where the installed program belongs to another one.
_CHECKOUT = {"PYTHONPATH": str(ROOT)}
_EXIT_CODES = (0, 3)  # success, finished with warnings


def command() -> list[str]:
    if importlib.util.find_spec("appliance.cli.main") is None:
        raise NotMeasuredError("appliance.cli.main is not there yet")
    return [sys.executable, "-m", "appliance.cli.main"]


def call(*arguments: str | Path, timeout_s: float = programs.DEFAULT_TIMEOUT_S) -> Run:
    words = [*command(), *arguments]
    return programs.run(words, environment=_CHECKOUT, timeout_s=timeout_s, accept=_EXIT_CODES)


def init(repository: Path) -> None:
    call("repo", "init", "--repo", repository)


def backup(
    repository: Path, vm: str, disks: Sequence[Path], *, changed: Path | None = None
) -> tuple[Run, str]:
    """Back up and return what it took and the id of the recovery point."""
    options: list[str | Path] = ["--changed", changed] if changed else []
    run = call("backup", "image", "--vm", vm, *disks, *options, "--repo", repository, "--json")
    return run, str(json.loads(run.stdout)["point_id"])


def new_bytes(run: Run) -> int:
    """Unique raw bytes that a backup added, over its disks."""
    disks = json.loads(run.stdout)["disks"]
    return sum(int(disk["new_bytes"]) for disk in disks)


def restore(repository: Path, point_id: str, disk_number: int, output: Path) -> Run:
    options = ["--disk", str(disk_number), "--format", "raw"]
    words = ["restore", "image", point_id, *options]
    return call(*words, "-o", output, "--repo", repository)


@contextmanager
def nbd_export(
    repository: Path, point_id: str, disk_number: int, socket: Path, *, cache_bytes: int = 0
) -> Iterator[str]:
    """Serve one disk read-only on a Unix socket for the block; yields its NBD URI.

    `cache_bytes` sizes the chunk cache where the program has an option for it.
    """
    uris: list[str] = []

    def ready(stdout: IO[bytes]) -> bool:
        stdout.seek(0)
        line = stdout.readline()
        if not line.endswith(b"\n"):
            return False
        uris.append(_uri(json.loads(line)))
        return True

    options: list[str] = ["--disk", str(disk_number), "--unix", str(socket), "--json"]
    if cache_bytes and "--cache" in call("export", "nbd", "--help").stdout:
        options += ["--cache", str(cache_bytes)]
    words = [*command(), "export", "nbd", point_id, *options, "--repo", str(repository)]
    with programs.server(words, ready=ready, environment=_CHECKOUT):
        yield uris[0]


def _uri(document: object) -> str:
    """The `uri` of the first export, wherever the document keeps it."""
    if isinstance(document, dict):
        if isinstance(document.get("uri"), str):
            return str(document["uri"])
        found = [_uri(value) for value in document.values() if isinstance(value, dict | list)]
        return next((uri for uri in found if uri), "")
    if isinstance(document, list):
        return next((uri for uri in map(_uri, document) if uri), "")
    return ""
