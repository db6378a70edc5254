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
from tests.support.network_namespace import NetworkNamespace

# The code of this checkout, also where the installed program belongs to another one; with compiled
# files, as an installed program has, whatever the caller's environment says.
CHECKOUT = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
_EXIT_CODES = (0, 3)  # success, finished with warnings


def command() -> list[str]:
    if importlib.util.find_spec("appliance.cli.main") is None:
        raise NotMeasuredError("appliance.cli.main is not there yet")
    return [sys.executable, "-m", "appliance.cli.main"]


def call(*arguments: str | Path, timeout_s: float = programs.DEFAULT_TIMEOUT_S) -> Run:
    words = [*command(), *arguments]
    return programs.run(words, environment=CHECKOUT, timeout_s=timeout_s, accept=_EXIT_CODES)


def init(repository: Path) -> None:
    call("repo", "init", "--repo", repository)


def backup(
    repository: Path, vm: str, disks: Sequence[Path], *, changed: Path | None = None
) -> tuple[Run, str]:
    """Back up and return what it took and the id of the recovery point."""
    options: list[str | Path] = ["--changed", changed] if changed else []
    run = call("backup", "image", "--vm", vm, *disks, *options, "--repo", repository, "--json")
    return run, str(_field(_document(run), "point_id"))


def new_bytes(run: Run) -> int:
    """Unique raw bytes that a backup added, over its disks."""
    disks = _field(_document(run), "disks")
    assert isinstance(disks, list)
    return sum(int(str(_field(disk, "new_bytes"))) for disk in disks)


def verify_boot(
    repository: Path, point_id: str, probes: Sequence[str], artifacts: Path
) -> tuple[float, float]:
    """Boot a point; return seconds from the request until QEMU runs, and from then to readiness."""
    words = [word for probe in probes for word in ("--probe", probe)]
    place: list[str | Path] = ["--artifacts", artifacts, "--json", "--repo", repository]
    place.append("--no-certificate")
    document = _document(call("verify", point_id, "--boot", *words, *place))
    start, ready = (_field(document, name) for name in ("start_seconds", "ready_seconds"))
    return float(str(start)), float(str(ready))


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
        try:
            document = json.load(stdout)  # may be on several lines, may be half written
        except ValueError:
            return False
        if not isinstance(document, dict) or "uri" not in document:
            return False  # an error document: the program is about to end
        uris.append(str(document["uri"]))
        return True

    options: list[str] = ["--disk", str(disk_number), "--unix", str(socket), "--json"]
    if cache_bytes and "--cache" in call("export", "nbd", "--help").stdout:
        options += ["--cache", str(cache_bytes)]
    words = [*command(), "export", "nbd", point_id, *options, "--repo", str(repository)]
    with programs.server(words, ready=ready, environment=CHECKOUT):
        yield uris[0]


@contextmanager
def nfs_export(
    network: NetworkNamespace,
    repository: Path,
    point_id: str,
    home: Path,
    *,
    cache_bytes: int,
    writable: bool = False,
) -> Iterator[str]:
    """Serve a point over NFS in `network`, on the usual ports; yields its nfs:// URL."""
    uris: list[str] = []

    def ready(stdout: IO[bytes]) -> bool:
        stdout.seek(0)
        try:
            document = json.load(stdout)
        except ValueError:
            return False
        uris.append(str(document["exports"][0]["uri"]))
        return True

    options = ["--cache", str(cache_bytes), *(["--writable"] if writable else [])]
    place = ["--repo", repository, "--home", home, "--json"]
    words = network.command(*command(), "export", "nfs", point_id, *options, *place)
    with programs.server(words, ready=ready, environment=CHECKOUT):
        yield uris[0]


def _document(run: Run) -> object:
    try:
        return json.loads(run.stdout)
    except ValueError as error:
        raise NotMeasuredError(f"holdfast printed no JSON: {run.stdout[:200]!r}") from error


def _field(document: object, *path: str) -> object:
    """The value at a path of names; a missing one is a reason, not a crash."""
    for name in path:
        if not isinstance(document, dict) or name not in document:
            raise NotMeasuredError(f"holdfast's JSON has no {name!r}")
        document = document[name]
    return document
