"""Deleting a whole repository: what can open it goes first, what names it goes last.

    key slots -> points -> packs, index and all else of ours -> config.json -> locks -> the folder

Without its key slots nobody opens it any more, so half a deleted repository is never mistaken for a
whole one; while `config.json` is there, deleting goes on where it was cut off. What is not of the
repository stays, and the folder with it. No key is needed: who lost the passphrase may delete.

The lock is a session of kind `delete` (`locks.py`, rule 12).
Thread model: functions; they block. Nothing of the repository may be open in this process.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from appliance.base.atomic import fsync_directory
from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import StorageError
from appliance.base.ids import new_run_id
from appliance.repository.blob_store.local_folder import LocalFolderStore
from appliance.repository.blob_store.names import UNFINISHED_FOLDER
from appliance.repository.errors import RepositoryNotFoundError
from appliance.repository.format import (
    BOOT_PROFILES,
    CONFIG_NAME,
    INDEX_SEGMENTS,
    KEY_SLOTS,
    PACKS,
    POINTS,
    QUARANTINE,
)
from appliance.repository.locks import (
    LOCKS,
    LockedError,
    SessionDetails,
    SessionKind,
    SessionLocks,
)
from appliance.repository.rebuild import INDEX_FOLDER
from appliance.repository.setup import read_config

_BEFORE_CONFIG = (
    KEY_SLOTS,
    POINTS,
    PACKS,
    INDEX_SEGMENTS,
    QUARANTINE,
    BOOT_PROFILES,
    INDEX_FOLDER,
    UNFINISHED_FOLDER,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryFacts:
    """What can be told without a key."""

    repository_id: str
    encrypted: bool
    point_count: int
    point_ids: frozenset[str]


def repository_facts(path: Path) -> RepositoryFacts:
    """Raises: as `Repository.open` before any key is asked for."""
    if not path.is_dir():
        raise RepositoryNotFoundError(f"no repository at {path}")
    store = LocalFolderStore(path)
    config = read_config(store, path)
    names = [blob.name.rpartition("/")[2] for blob in store.list(POINTS)]
    ids = frozenset(name.removesuffix(".point") for name in names if name.endswith(".point"))
    return RepositoryFacts(
        repository_id=config.repository_id,
        encrypted=config.encrypted,
        point_count=len(ids),
        point_ids=ids,
    )


def remove_repository(
    path: Path, repository_id: str, *, clock: Clock | None = None
) -> tuple[str, ...]:
    """Delete it; return the names of what else lies there and stays.

    Crash guarantee: nobody opens what is left; calling again goes on.

    Raises:
        RepositoryNotFoundError: there is none, or another one.
        LockedError: somebody reads or writes in it.
        StorageError: something cannot be removed; what is left is no repository that opens.
    """
    if repository_facts(path).repository_id != repository_id:
        raise RepositoryNotFoundError(f"{path} is another repository than {repository_id}")
    locks = SessionLocks(path, clock=clock)
    run_id = new_run_id((clock or SystemClock()).now())
    details = SessionDetails(purpose="deletes the repository")
    with locks.register(SessionKind.DELETE, run_id, details=details):
        readers = locks.live(SessionKind.READER)
        if readers:
            raise LockedError(SessionKind.DELETE, readers)
        try:
            for name in _BEFORE_CONFIG:
                _remove(path / name)
                fsync_directory(path)
            (path / CONFIG_NAME).unlink()
            fsync_directory(path)
        except OSError as error:
            where = error.filename or path
            raise StorageError(f"{where}: {os.strerror(error.errno or 0)}") from error
    return _without_folder(path)


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _without_folder(path: Path) -> tuple[str, ...]:
    """The locks are let go of; remove them and, if nothing else is there, the folder."""
    try:
        _remove(path / LOCKS)
        rest = tuple(sorted(entry.name for entry in path.iterdir()))
        if not rest and not path.is_mount():
            path.rmdir()
    except OSError as error:
        where = error.filename or path
        raise StorageError(f"{where}: {os.strerror(error.errno or 0)}") from error
    return rest
