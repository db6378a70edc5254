"""What earlier attempts to roll a VM back may have written, kept until one of them has succeeded.

A roll-back writes into the VM's own disks. If it breaks half way, some areas hold the point's bytes
and some do not, and the hypervisor's change list does not know of our writes. So the areas are
written down before the first of them is touched, and the next attempt (to whichever point) writes
them all again, with whatever else has changed.

File: one JSON document per VM in the state folder, replaced whole and durably, removed by the
attempt that succeeds. A document that cannot be read stands for the whole of every disk.

Thread model: one attempt per VM at a time, under the VM's lock.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from appliance.base.atomic import fsync_directory, make_folders, replace_file
from appliance.base.errors import StorageError
from appliance.blocks.extents import Extent, normalise

_FORMAT = 1
_MOST_BYTES = 64 << 20
_MOST_EXTENTS = 1 << 18  # of a disk; above that, all of it counts as touched

Touched = Mapping[int, list[Extent] | None]
"""Disk number -> its areas; None: all of it."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Disk(_Strict):
    number: int = Field(ge=0, lt=256)
    extents: tuple[tuple[int, int], ...] | None = Field(max_length=_MOST_EXTENTS)


class _Journal(_Strict):
    format: int = Field(ge=_FORMAT, le=_FORMAT)
    disks: tuple[_Disk, ...] = Field(max_length=256)


class RollbackJournal:
    def __init__(self, folder: Path, vm_key: str) -> None:
        self._folder = folder
        self._path = folder / f"{hashlib.sha256(vm_key.encode()).hexdigest()[:40]}.json"

    def touched(self, numbers: frozenset[int]) -> Touched:
        """What earlier attempts may have written; {} when none has failed."""
        try:
            with self._path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise _storage_error(self._path, error) from error
        try:
            journal = _Journal.model_validate_json(data)
        except ValidationError:
            return dict.fromkeys(numbers)
        return {
            disk.number: None
            if disk.extents is None
            else normalise(Extent(offset, length) for offset, length in disk.extents)
            for disk in journal.disks
        }

    def write(self, touched: Touched) -> None:
        """Durable on return. Raises StorageError: then nothing may be written to the VM."""
        journal = _Journal(
            format=_FORMAT,
            disks=tuple(
                _Disk(
                    number=number,
                    extents=None
                    if extents is None or len(extents) > _MOST_EXTENTS
                    else tuple((extent.offset, extent.length) for extent in extents),
                )
                for number, extents in sorted(touched.items())
            ),
        )
        try:
            make_folders(self._folder)
            replace_file(self._path, journal.model_dump_json().encode())
        except OSError as error:
            raise _storage_error(self._path, error) from error

    def forget(self) -> None:
        """The VM is whole again. Idempotent."""
        try:
            self._path.unlink(missing_ok=True)
            if self._folder.is_dir():
                fsync_directory(self._folder)
        except OSError as error:
            raise _storage_error(self._path, error) from error


def _storage_error(path: Path, error: OSError) -> StorageError:
    return StorageError(f"{path}: {os.strerror(error.errno or 0)}")
