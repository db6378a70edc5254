"""The folder of a recovery session: whose writes they are, and who may touch them.

    session.json   version, session id, size and geometry of the disk, identity of its base
    lock           flock: one open overlay per folder
    data           sparse; one slot per touched segment
    journal        the map of `data`

`session.json` is the commit of `create_session`: a folder without it holds no session.
Identity is whatever JSON the caller needs to recognise the base again (point id, disk number).
"""

from __future__ import annotations

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from appliance.base.atomic import fsync_directory, replace_file
from appliance.base.units import KIB
from appliance.blocks.overlay_errors import (
    OverlayBusyError,
    OverlayCorruptError,
    OverlayExistsError,
    OverlayMismatchError,
    OverlayMissingError,
    OverlayVersionError,
)
from appliance.blocks.overlay_files import storage_error
from appliance.blocks.overlay_journal import encode_header
from appliance.blocks.overlay_map import MAX_SEGMENTS, Geometry

Identity = dict[str, JsonValue]

VERSION = 1
_LIMIT_BYTES = 64 * KIB
_SESSION, _LOCK, _DATA, _JOURNAL = "session.json", "lock", "data", "journal"


class Session(BaseModel):
    """What `session.json` says."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["holdfast-overlay"] = "holdfast-overlay"
    version: int = VERSION
    session_id: str = Field(pattern="^[0-9a-f]{32}$")
    size_bytes: int = Field(ge=0)
    block_bytes: int
    segment_blocks: int
    identity: Identity

    @property
    def geometry(self) -> Geometry:
        return Geometry(block_bytes=self.block_bytes, segment_blocks=self.segment_blocks)

    @property
    def journal_header(self) -> bytes:
        session_id = bytes.fromhex(self.session_id)
        return encode_header(session_id, self.block_bytes, self.segment_blocks)


def data_path(folder: Path) -> Path:
    return folder / _DATA


def journal_path(folder: Path) -> Path:
    return folder / _JOURNAL


def lock_folder(folder: Path) -> int:
    """Return the descriptor that holds the lock; closing it releases. Raises OverlayBusyError."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise OverlayMissingError(f"there is no session in {folder}") from error
    except OSError as error:
        raise storage_error(f"cannot open the lock in {folder}", error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if isinstance(error, BlockingIOError):
            raise OverlayBusyError(f"the session in {folder} is open elsewhere") from error
        raise storage_error(f"cannot lock {folder}", error) from error
    return fd


def create_session(folder: Path, size_bytes: int, identity: Identity, geometry: Geometry) -> None:
    """Write an empty session into the locked `folder`.

    After a crash there is a whole session or none, and the call may be repeated.

    Raises: OverlayExistsError, StorageFullError, StorageError.
    """
    if (folder / _SESSION).exists():
        raise OverlayExistsError(f"{folder} holds a session already")
    session = Session(
        session_id=secrets.token_hex(16),
        size_bytes=size_bytes,
        block_bytes=geometry.block_bytes,
        segment_blocks=geometry.segment_blocks,
        identity=identity,
    )
    try:
        replace_file(data_path(folder), b"")
        replace_file(journal_path(folder), session.journal_header)
        fsync_directory(folder.parent)
        replace_file(folder / _SESSION, session.model_dump_json(indent=2).encode())
    except OSError as error:
        raise storage_error(f"cannot create a session in {folder}", error) from error


def read_session(folder: Path, size_bytes: int, identity: Identity) -> Session:
    """Return the session of `folder` if it belongs to this base.

    Raises: OverlayMissingError, OverlayMismatchError, OverlayVersionError, OverlayCorruptError.
    """
    session = _parse_session(folder, _read_limited(folder))
    if session.version > VERSION:
        raise OverlayVersionError(f"the session in {folder} has version {session.version}")
    if session.size_bytes != size_bytes:
        raise OverlayMismatchError(
            f"the session in {folder} is for a disk of {session.size_bytes} bytes, not {size_bytes}"
        )
    if session.identity != identity:
        raise OverlayMismatchError(f"the session in {folder} is for {session.identity}")
    return session


def _read_limited(folder: Path) -> bytes:
    try:
        with open(folder / _SESSION, "rb") as file:
            raw = file.read(_LIMIT_BYTES + 1)
    except FileNotFoundError as error:
        raise OverlayMissingError(f"there is no session in {folder}") from error
    except OSError as error:
        raise storage_error(f"cannot read the session in {folder}", error) from error
    if len(raw) > _LIMIT_BYTES:
        raise OverlayCorruptError(f"session.json in {folder} is larger than it can be")
    return raw


def _parse_session(folder: Path, raw: bytes) -> Session:
    try:
        session = Session.model_validate_json(raw)
        segments = -(-session.size_bytes // session.geometry.segment_bytes)
    except (ValidationError, ValueError) as error:
        raise OverlayCorruptError(f"session.json in {folder} is damaged: {error}") from error
    if segments > MAX_SEGMENTS:
        raise OverlayCorruptError(f"session.json in {folder} describes {segments} segments")
    return session


def remove_unfinished(folder: Path) -> None:
    """Remove what a crash inside `replace_file` left in the locked `folder`."""
    for name in (_SESSION, _JOURNAL, _DATA):
        for path in folder.glob(f".{name}.*.tmp"):
            path.unlink()


def remove_session(folder: Path) -> None:
    """Remove the files of a locked session; after a crash half way there is no session left."""
    (folder / _SESSION).unlink(missing_ok=True)
    fsync_directory(folder)
    remove_unfinished(folder)
    for name in (_JOURNAL, _DATA, _LOCK):  # the lock last: from then on others may begin here
        (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # the caller may keep files of its own here
        folder.rmdir()
