"""The programs from Debian's packages that Holdfast is compared with, and how each is called."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from tests.perf import programs
from tests.perf.programs import NotMeasuredError, Run

_RESTIC = {"RESTIC_PASSWORD": "bench"}
_VERSIONS = {
    "borg": ["borg", "--version"],
    "restic": ["restic", "version"],
    "qemu-img": ["qemu-img", "--version"],
    "qemu-nbd": ["qemu-nbd", "--version"],
    "nbdkit": ["nbdkit", "--version"],
    "nbdcopy": ["nbdcopy", "--version"],
    "fio": ["fio", "--version"],
}


def versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name, words in _VERSIONS.items():
        try:
            found[name] = programs.run(words, timeout_s=20).stdout.splitlines()[0]
        except (NotMeasuredError, IndexError):
            found[name] = "missing"
    return found


class Borg:
    """borg without encryption, fixed 64 KiB chunks, zstd 1; caches beside the repository."""

    def __init__(self, home: Path, *, sparse: bool = True) -> None:
        self.repository = home / "repository"
        self._sparse = ["--sparse"] if sparse else []  # holes by SEEK_HOLE instead of by reading
        self._environment = {"BORG_BASE_DIR": str(home / "base")}
        self._run("init", "--encryption=none", self.repository)

    def create(self, name: str, disks: Sequence[Path]) -> Run:
        options = ["--chunker-params=fixed,65536", "--compression=zstd,1", *self._sparse]
        return self._run("create", *options, f"{self.repository}::{name}", *disks)

    def extract(self, name: str, folder: Path) -> Run:
        """Restore into `folder` (borg writes below the working directory)."""
        return self._run("extract", "--sparse", f"{self.repository}::{name}", folder=folder)

    def _run(self, *words: str | Path, folder: Path | None = None) -> Run:
        return programs.run(["borg", *words], environment=self._environment, folder=folder)


class Restic:
    """restic with its defaults: always encrypted; 0.14 makes format 2, which compresses (zstd)."""

    def __init__(self, home: Path) -> None:
        self.repository = home / "repository"
        self._cache = home / "cache"
        self._run("init")

    def backup(self, disks: Sequence[Path]) -> Run:
        return self._run("backup", *disks)

    def _run(self, *words: str | Path) -> Run:
        place: list[str | Path] = ["--repo", self.repository, "--cache-dir", self._cache]
        return programs.run(["restic", *words, *place], environment=_RESTIC)


def zstd_qcow2(raw: Path, output: Path) -> None:
    """Compress a raw disk into a qcow2 with zstd and 64 KiB clusters."""
    options = "compression_type=zstd,cluster_size=65536"
    words = ["qemu-img", "convert", "-c", "-O", "qcow2", "-o", options]
    programs.run([*words, raw, output])


def convert_to_raw(qcow2: Path, output: Path) -> Run:
    return programs.run(["qemu-img", "convert", "-O", "raw", qcow2, output])


def nbdcopy(uri: str, output: str | Path) -> Run:
    return programs.run(["nbdcopy", uri, output])


@contextlib.contextmanager
def qemu_nbd(disk: Path, disk_format: str, socket: Path) -> Iterator[str]:
    """A fresh read-only qemu-nbd with qemu's default cache mode; yields its URI."""
    words = ["qemu-nbd", "--read-only", "--persistent", "--shared=8", f"--format={disk_format}"]
    with _unix_server([*words, f"--socket={socket}", str(disk)], socket) as uri:
        yield uri


@contextlib.contextmanager
def nbdkit_file(disk: Path, socket: Path) -> Iterator[str]:
    words = ["nbdkit", "--foreground", "--readonly", "--unix", str(socket), "file", str(disk)]
    with _unix_server(words, socket) as uri:
        yield uri


@contextlib.contextmanager
def _unix_server(words: list[str], socket: Path) -> Iterator[str]:
    uri = f"nbd+unix:///?socket={socket}"
    socket.unlink(missing_ok=True)

    def ready(_: IO[bytes]) -> bool:
        # Health is asked through the protocol: a socket file appears before the server listens.
        if not socket.exists():
            return False
        words = ["nbdinfo", "--size", uri]
        return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0

    programs.require("nbdinfo")
    with programs.server(words, ready=ready):
        yield uri


def fio(uri: str, *options: str, timeout_s: float = 120.0) -> dict[str, float]:
    """Read over NBD with fio; returns iops, MiB/s and the mean latency."""
    words = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", "--output-format=json"]
    # fio leaves state files in its working directory; /tmp keeps them out of the checkout.
    run = programs.run([*words, *options], timeout_s=timeout_s, folder=Path("/tmp"))
    return parse_fio(run.stdout)


def parse_fio(text: str) -> dict[str, float]:
    """Take the read figures of the first job; fio may print notes before its JSON."""
    match = re.search(r"^\{", text, re.MULTILINE)
    if match is None:
        raise NotMeasuredError(f"fio printed no JSON: {text[:200]!r}")
    try:
        job = json.loads(text[match.start() :])["jobs"][0]
        if job["error"]:
            raise NotMeasuredError(f"fio reports error {job['error']}")
        read = job["read"]
        return {
            "iops": float(read["iops"]),
            "mib_per_s": float(read["bw_bytes"]) / (1 << 20),
            "latency_us": float(read["lat_ns"]["mean"]) / 1000,
        }
    except (ValueError, KeyError, IndexError) as error:
        raise NotMeasuredError(f"fio's JSON is not as expected: {error!r}") from error
