"""Which runs are alive: each holds a locked file that goes with its process, whatever killed it.

`HOME/runs/<run id>.run`, see `base/locked_file.py`. Some runs outlive every process (a recovery
session is one as long as its folder exists); who makes the locks says where those are found. A run
takes its lock before it records an intent and lets it go after its last intent is closed, so an
open intent of a run that is not alive is debris (`intents.py`). Who removes debris holds
`HOME/runs/cleaning`: one process at a time.

Thread model: any thread, any process of one machine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from appliance.base.atomic import make_folders
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.ids import RunId
from appliance.base.locked_file import LockMode, open_if_alive, published, try_lock

_RUN_FILE = re.compile(r"([0-9A-Za-z-]{1,64})\.run")
_TEMPORARY = re.compile(r"\d+-[0-9a-f]{16}")
_CLEANING = "cleaning"


class CleaningBusyError(ApplianceError):
    """Another process is removing what killed runs left behind; nothing needs to be done."""

    code = "catalog.cleaning-busy"
    retryable = True


class RunLocks:
    def __init__(
        self, folder: Path, lasting: Callable[[], frozenset[RunId]] = frozenset[RunId]
    ) -> None:
        """`lasting`: the runs that need no process; may raise OSError."""
        self._folder = folder
        self._lasting = lasting

    @contextmanager
    def hold(self, run_id: RunId) -> Iterator[None]:
        """The run is alive while the block is. A run id is never used again.

        Raises: StorageError; ValueError: not a run id.
        """
        name = f"{run_id}.run"
        if not _RUN_FILE.fullmatch(name):
            raise ValueError(f"not a run id: {run_id!r}")
        with ExitStack() as held:
            with _as_storage_error(self._folder):
                make_folders(self._folder)
                held.enter_context(published(self._folder / name, f"{os.getpid()}\n".encode()))
            yield

    def alive(self) -> frozenset[RunId]:
        """Return the runs whose process is alive; remove the files of dead ones.

        Raises StorageError: it cannot be told. Never a partial answer: clean-up depends on it.
        """
        found: set[RunId] = set()
        with _as_storage_error(self._folder):
            found |= self._lasting()
            if not self._folder.exists():
                return frozenset(found)
            for path in list(self._folder.iterdir()):
                match = _RUN_FILE.fullmatch(path.name)
                if match is None and not _TEMPORARY.fullmatch(path.name):
                    continue
                fd = open_if_alive(path)
                if fd is not None:
                    os.close(fd)
                    if match is not None:
                        found.add(RunId(match[1]))
        return frozenset(found)

    @contextmanager
    def cleaning(self) -> Iterator[None]:
        """Be the only one to remove debris. Raises CleaningBusyError, StorageError."""
        with _as_storage_error(self._folder):
            make_folders(self._folder)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(self._folder / _CLEANING, flags, 0o600)
        try:
            if not try_lock(fd, LockMode.EXCLUSIVE):
                raise CleaningBusyError("another process is cleaning up")
            yield
        finally:
            os.close(fd)


@contextmanager
def _as_storage_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or folder}: {os.strerror(error.errno or 0)}"
        ) from error
