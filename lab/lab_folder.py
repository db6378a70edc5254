"""Where a background lab keeps its things, and how one knows whether it runs.

| where | what |
|---|---|
| `FOLDER/lock` | held (flock) by the lab's process as long as it lives: the truth about "runs" |
| `FOLDER/state.json` | what `lab status` shows, password included; written when the lab is ready |
| `FOLDER/lab.log` | what the process says |
| `FOLDER/datastores/` | the bytes of the datastores |
| the run folder, under /tmp | sockets, whose paths must be short; `FOLDER/run` names it |

Both folders have mode 0700. A folder whose lock is free is what a crash has left.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lab.esx.exported_disk import release_exports_below
from lab.hyperv_host.iscsi import release_mounts_below

_RUN_PREFIX = "holdfast-lab-"


class LabFolder:
    def __init__(self, folder: Path) -> None:
        self.path = folder.absolute()
        self.lock_path = self.path / "lock"
        self.state_path = self.path / "state.json"
        self.log_path = self.path / "lab.log"
        self.datastores_path = self.path / "datastores"
        self._run_link = self.path / "run"

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.path.chmod(0o700)

    @contextmanager
    def only_one(self) -> Iterator[None]:
        """Hold up every other `up` and `down` of this folder; leaves no file behind."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def try_lock(self) -> int | None:
        """Return a descriptor that holds the lock while it is open; None if a lab runs."""
        fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def wait_unlocked(self) -> None:
        """Block until the process that holds the lock has ended."""
        with suppress(FileNotFoundError), self.lock_path.open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def runs(self) -> bool:
        if not self.lock_path.exists():
            return False
        fd = self.try_lock()
        if fd is None:
            return True
        os.close(fd)
        return False

    def make_run_folder(self) -> Path:
        run = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX))
        self._run_link.write_text(str(run))
        return run

    def run_folder(self) -> Path | None:
        """None if there is none, or what is named is not ours."""
        try:
            run = Path(self._run_link.read_text())
        except OSError:
            return None
        ours = run.name.startswith(_RUN_PREFIX) and run.is_dir() and not run.is_symlink()
        return run if ours and run.stat().st_uid == os.getuid() else None

    @property
    def socket_path(self) -> Path | None:
        run = self.run_folder()
        return run / "control.sock" if run else None

    def write_state(self, state: dict[str, Any]) -> None:
        temporary = self.path / "state.tmp"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(state, file, indent=1)
        temporary.replace(self.state_path)

    def read_state(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] = json.loads(self.state_path.read_text())
        except (OSError, ValueError):
            return None
        return state

    def remove(self) -> None:
        """Take everything away that a lab which no longer runs has left, mounts included."""
        run = self.run_folder()
        if run is not None:
            release_exports_below(run)
            release_mounts_below(self.path, run)
            shutil.rmtree(run, ignore_errors=True)
        shutil.rmtree(self.path, ignore_errors=True)
