"""Loop devices over files of the lab, attached and surely given back.

Ours are those whose backing file lies below a folder of the lab, or was an export of a lab that is
dead: its mount answers nobody any more. Needs root and /dev/loop-control. Blocks on `losetup`.
"""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path

from lab.esx.errors import HostError

_TIMEOUT_S = 30.0


def attach_loop(file: Path, *, read_only: bool) -> Path:
    """Return the device node. Raises HostError."""
    options = ["--read-only"] if read_only else []
    return Path(_losetup("--find", "--show", *options, str(file)).strip())


def detach_loop(device: Path) -> None:
    """A device that is still open goes away when it is closed. Idempotent."""
    if device in [found for found, _ in _all_loops()]:
        _losetup("--detach", str(device))


def release_loops_below(folder: Path) -> list[Path]:
    """Detach every loop device over a file of this folder; return the devices."""
    prefix = f"{folder.absolute()}/"
    ours = [device for device, file in _all_loops() if file.startswith(prefix)]
    for device in ours:
        detach_loop(device)
    return ours


def release_dead_loops(file_name: str) -> list[Path]:
    """Detach loop devices over files of this name whose file system is dead; return the files."""
    dead = []
    for device, file in _all_loops():
        path = Path(file.removesuffix(" (deleted)"))
        if path.name == file_name and _is_dead(path):
            detach_loop(device)
            dead.append(path)
    return dead


def _is_dead(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ENOENT, errno.EIO)
    return False


def _all_loops() -> list[tuple[Path, str]]:
    text = _losetup("--list", "--json", "--output", "NAME,BACK-FILE")
    entries = json.loads(text)["loopdevices"] if text.strip() else []
    return [(Path(entry["name"]), entry["back-file"] or "") for entry in entries]


def _losetup(*arguments: str) -> str:
    try:
        result = subprocess.run(
            ["losetup", *arguments], capture_output=True, check=True, timeout=_TIMEOUT_S, text=True
        )
    except subprocess.CalledProcessError as error:
        raise HostError(f"losetup: {error.stderr.strip()}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"losetup: {error}") from error
    return result.stdout
