"""Debian packages unpacked beside the system: their programs, without their services.

Installing rpcbind or nfs-ganesha would start them, on ports that the tests and the appliance want.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from lab.guests.image_cache import default_cache_folder
from lab.guests.packages import run, versions

RPCBIND = ("rpcbind", "libtirpc3", "libwrap0")
_LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu", "usr/lib/ganesha", "usr/lib")


def unpacked(*packages: str) -> Path:
    """The root of the packages' files; downloaded once. Raises RuntimeError."""
    found = versions(packages)
    name = hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]
    folder = default_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    whole = folder / f"packages-{name}"
    with (folder / ".packages.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not whole.exists():
            with tempfile.TemporaryDirectory(prefix="holdfast-packages-", dir=folder) as temp:
                _unpack(packages, Path(temp)).rename(whole)
    return whole


def _unpack(packages: tuple[str, ...], folder: Path) -> Path:
    subprocess.run(
        ["apt-get", "--quiet=2", "download", *packages],
        cwd=folder,
        check=True,
        timeout=300,
        capture_output=True,
    )
    root = folder / "root"
    for package in folder.glob("*.deb"):
        run(["dpkg-deb", "--extract", package, root], timeout_s=120)
    return root


def environment(root: Path) -> dict[str, str]:
    """For programs of `unpacked` packages: where their libraries are."""
    paths = ":".join(str(root / each) for each in _LIBRARIES)
    return {**os.environ, "LD_LIBRARY_PATH": paths}
