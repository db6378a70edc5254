"""`lab up`, `lab status`, `lab down`: a practice lab as a process of its own.

The process survives the terminal; it ends by `down`, by SIGTERM, or with the machine. `up` is
idempotent, and clears away what a crashed lab has left. All functions block; none is quick.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.control_socket import ControlError, ask
from lab.lab_folder import LabFolder

_DOWN_S = 60.0
_LOG_TAIL_BYTES = 2000
READY = b"ready\n"
ON_HYPERV = "hyperv:"  # before the name of a guest that runs on the Hyper-V host, or alone


class LabError(Exception):
    """The lab could not be started or stopped; the message says why."""


def up(folder: Path, guests: Sequence[str]) -> dict[str, Any]:
    """Start a lab and return its state when it is ready, or that of the one that runs already.

    Args:
        guests: as `lab_process` takes them.

    Raises:
        LabError: it did not start. Its log stays until `down` or the next `up`.
    """
    place = LabFolder(folder)
    with place.only_one():
        if place.runs():
            return _running(place)
        if place.path.exists():
            place.remove()  # what a crash has left
        place.make()
        return _start(place, guests)


def _start(place: LabFolder, guests: Sequence[str]) -> dict[str, Any]:
    read_fd, write_fd = os.pipe()
    with os.fdopen(read_fd, "rb") as ready, place.log_path.open("wb") as log:
        command = [sys.executable, "-m", "lab.lab_process", str(place.path), str(write_fd), *guests]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={**os.environ, "PYTHONPATH": _python_path()},
            start_new_session=True,
            pass_fds=(write_fd,),
        )
        os.close(write_fd)
        if ready.read() != READY:
            process.wait()
            raise LabError(f"the lab did not start: {_last_words(place)}")
    state = place.read_state()
    if state is None:
        raise LabError("the lab has written no state")
    return {**state, "already_running": False}


def status(folder: Path) -> dict[str, Any]:
    """Return the state of the lab; `running` says whether there is one."""
    place = LabFolder(folder)
    if not place.runs():
        return {"running": False}
    return _running(place)


def down(folder: Path) -> bool:
    """End the lab and remove all of it; False if there was nothing. Raises LabError."""
    place = LabFolder(folder)
    if not place.path.exists():
        return False
    with place.only_one():
        ran = place.runs()
        if ran:
            _stop(place)
        place.remove()
    return ran


def _running(place: LabFolder) -> dict[str, Any]:
    socket_path = place.socket_path
    if socket_path is None:
        raise LabError("the lab is starting, or it is being stopped")
    try:
        return {**ask(socket_path, "status"), "already_running": True}
    except ControlError as error:
        raise LabError(str(error)) from error


def _stop(place: LabFolder) -> None:
    """Ask, then insist: the process is known by the lock it holds and by its own record."""
    socket_path, state = place.socket_path, place.read_state()
    with suppress(ControlError):
        if socket_path is not None:
            ask(socket_path, "down")
    deadline = time.monotonic() + _DOWN_S
    while place.runs():
        if time.monotonic() > deadline:
            pid = int((state or {}).get("pid", 0))
            if not _is_lab(pid, place):
                raise LabError(f"the lab does not end, and its process is not known: {place.path}")
            os.kill(pid, signal.SIGKILL)
            place.wait_unlocked()
            return
        time.sleep(0.02)


def _is_lab(pid: int, place: LabFolder) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"lab.lab_process" in words and os.fsencode(place.path) in words


def _python_path() -> str:
    """This checkout first, whatever the environment has installed."""
    root = str(Path(__file__).parents[1])
    return os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])


def _last_words(place: LabFolder) -> str:
    with suppress(OSError):
        data = place.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
        if data:
            return data.splitlines()[-1]
    return f"it ended without a word; see {place.log_path}"
