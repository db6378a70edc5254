"""Environments side by side: `/opt/holdfast/VERSION`, and which of them is `current`.

`current` is a symbolic link that one rename moves, so there is always exactly one. An environment
is complete once its marker is there; one without is what an installation that was cut off left.
Installing needs no network. Thread model: one process at a time (updates hold a lock).
Source: venv and pip of Python 3.11.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from appliance.base.atomic import fsync_directory
from appliance.machine.programs import run

CURRENT, PREVIOUS = "current", "previous"
_COMPLETE = ".complete"
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,62}")
_INSTALL_S = 900.0
_RUN_PIP = (
    "import glob, runpy, sys; "
    "sys.path.insert(0, glob.glob('/usr/share/python-wheels/pip-*.whl')[0]); "
    "runpy.run_module('pip', run_name='__main__', alter_sys=True)"
)
"""Debian keeps pip as a wheel for venv (package python3-pip-whl); a wheel can be run as it is."""
_STAGES = {"dev": -4, "a": -3, "b": -2, "rc": -1, "post": 1}


def is_version(text: str) -> bool:
    """Whether it may name an environment."""
    return _VERSION.fullmatch(text) is not None


def version_key(version: str) -> tuple[tuple[int, int], ...]:
    """Orders what we release as PEP 440 does: 0.9, 0.10, 1.0.dev1, 1.0a1, 1.0rc1, 1.0, 1.0.1."""
    parts = re.findall(r"\d+|[a-z]+", version.lower().partition("+")[0])
    keys = [(2, int(part)) if part.isdigit() else (_STAGES.get(part, -5), 0) for part in parts]
    return (*keys, (0, 0))


def install_commands(target: str, wheels: str, version: str) -> list[list[str]]:
    """What makes an environment of a folder of wheels; pip does not get into it."""
    python = f"{target}/bin/python"
    pip = [python, "-c", _RUN_PIP, "--disable-pip-version-check", "--no-cache-dir", "--quiet"]
    wanted = f"holdfast=={version}"
    return [
        ["python3", "-m", "venv", "--without-pip", target],
        [*pip, "install", "--no-index", "--find-links", wheels, "--no-compile", wanted],
        [
            python,
            "-m",
            "compileall",
            "-q",
            "--invalidation-mode",
            "unchecked-hash",
            f"{target}/lib",
        ],
    ]


class Environments:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def version_of(self, link: str) -> str | None:
        """What `current` or `previous` points to."""
        try:
            return str((self.folder / link).readlink())
        except OSError:
            return None

    def install(self, version: str, wheels: Path) -> Path:
        """Make the environment unless it is complete. Raises MachineCommandError, OSError."""
        target = self.folder / version
        if (target / _COMPLETE).exists():
            return target
        shutil.rmtree(target, ignore_errors=True)
        for command in install_commands(str(target), str(wheels), version):
            run(command, timeout_s=_INSTALL_S)
        run([target / "bin/holdfast", "--version"])
        os.sync()
        (target / _COMPLETE).touch()
        fsync_directory(target)
        return target

    def point(self, link: str, version: str) -> None:
        """After a crash the link is the old one or the new one. Raises OSError."""
        temp = self.folder / f".{link}.tmp"
        temp.unlink(missing_ok=True)
        temp.symlink_to(version)
        temp.replace(self.folder / link)
        fsync_directory(self.folder)

    def remove_others(self, keep: Sequence[str | None]) -> None:
        """All environments but those named, and nothing that is no environment."""
        for path in self.folder.iterdir():
            ours = is_version(path.name) and (path / "pyvenv.cfg").exists()
            if ours and not path.is_symlink() and path.name not in keep:
                shutil.rmtree(path)
