"""Starting the daemon in the background when a command needs one and none answers.

It gets the same state folder and repository, and its secrets by the environment or by the same
files, never in its arguments. It is a session of its own, so that neither the command's end nor its
terminal takes it along; what it says goes to `HOME/daemon.log`.
Thread model: blocks; two commands may start one at the same time, one of them wins.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from appliance.base.errors import ApplianceError, StorageError
from appliance.base.run_context import CancelToken
from appliance.service.daemon_client import DaemonClient, DaemonUnreachableError
from appliance.service.daemon_lock import daemon_starts

_START_S = 60.0
_POLL_S = 0.05
_LAST_WORDS_BYTES = 2000


class DaemonNotStartedError(ApplianceError):
    """The daemon did not start; its last words follow, and all of them are in HOME/daemon.log."""

    code = "daemon.not-started"


def ensure_daemon(home: Path, words: Sequence[str], cancel: CancelToken) -> bool:
    """Return once a daemon answers; whether it was started here.

    Args:
        words: what follows `holdfast serve`; no secrets.

    Raises: DaemonNotStartedError, StorageError, CancelledError: it may start all the same.
    """
    client = DaemonClient(home)
    try:
        client.about()
        return False
    except DaemonUnreachableError:
        pass
    process = _spawn(home, words)
    ends_s = time.monotonic() + _START_S
    while True:
        try:
            client.about()
            return process.poll() is None
        except DaemonUnreachableError as error:
            if process.poll() is not None and not daemon_starts(home):
                raise DaemonNotStartedError(_last_words(home)) from error
            if time.monotonic() > ends_s:
                raise DaemonNotStartedError(f"no answer; {_last_words(home)}") from error
        cancel.check()
        cancel.wait(_POLL_S)


def _spawn(home: Path, words: Sequence[str]) -> subprocess.Popen[bytes]:
    try:
        fd = os.open(
            home / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise StorageError(f"{home / 'daemon.log'}: {error.strerror}") from error
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "appliance.cli.main", "serve", *words],
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            start_new_session=True,
            cwd="/",
        )
    finally:
        os.close(fd)


def _last_words(home: Path) -> str:
    try:
        with (home / "daemon.log").open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _LAST_WORDS_BYTES))
            return file.read().decode("utf-8", "replace").strip()
    except OSError:
        return f"see {home / 'daemon.log'}"
