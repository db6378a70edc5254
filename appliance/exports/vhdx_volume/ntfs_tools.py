"""An empty NTFS volume with allocated files on it, made by the programs of ntfs-3g.

mkntfs formats, ntfscp makes an empty file, ntfsfallocate gives it clusters without writing them.
All three work on the volume's file directly; nothing is mounted. They are programs of their own
(GPL) and see nothing but what was made here. With 64 KiB clusters: 62 TiB take 10 s, else 1 s.
Thread model: blocks.
Sources: mkntfs(8), ntfscp(8), ntfsfallocate(8) of ntfs-3g 2022.10.3.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from appliance.base.errors import ExternalProgramError
from appliance.base.units import KIB, SECTOR_BYTES

CLUSTER_BYTES = 64 * KIB  # what Microsoft advises for volumes of VHDX files
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = ("mkntfs", "ntfscp", "ntfsfallocate")
_TIMEOUT_S = 600
_LAST_WORDS = 500


def missing_program() -> str:
    """The first program that is not installed; empty: all are."""
    return next((name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None), "")


def format_volume(volume: Path, label: str, partition_offset: int) -> None:
    """Make an empty volume of the whole of `volume`. Raises ExternalProgramError."""
    _run(
        "mkntfs",
        "--quick",
        "--force",
        "--no-indexing",
        f"--cluster-size={CLUSTER_BYTES}",
        f"--sector-size={SECTOR_BYTES}",
        f"--partition-start={partition_offset // SECTOR_BYTES}",
        "--heads=255",
        "--sectors-per-track=63",
        f"--label={label}",
        str(volume),
    )


def allocate_file(volume: Path, name: str, size_bytes: int) -> None:
    """Make a file of the root folder that owns all its clusters. Raises ExternalProgramError."""
    _run("ntfscp", "--quiet", "--force", str(volume), os.devnull, name)
    _run("ntfsfallocate", "-f", "-l", str(size_bytes), str(volume), name)


def _run(program: str, *words: str) -> None:
    try:
        done = subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={"PATH": _PATH, "LC_ALL": "C"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ExternalProgramError(
            f"{program} is not installed (Debian package ntfs-3g)"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExternalProgramError(f"{program}: {error}") from error
    if done.returncode:
        words_said = done.stdout.decode("utf-8", "replace").strip()[-_LAST_WORDS:]
        raise ExternalProgramError(f"{program}: exit code {done.returncode}: {words_said}")
