"""Updating the appliance: install beside, switch by one rename, go back unless it becomes healthy.

Order: check signature and version, install into an environment of its own, stop the daemon, copy
the catalog (the new version migrates it, and the old one would refuse it then), write the journal,
switch, start, watch. The version that runs this code is the old one, from before the switch to the
verdict: a new version need not work to be taken back. After a power cut between, `settle` finds the
journal at the next boot and finishes with the code of `previous`.

Crash guarantee: at any point either the old version or the new one is current; a switch that was
not confirmed is confirmed or taken back at the next boot. Thread model: one process (flock).
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance.base.atomic import fsync_directory, replace_file, write_all
from appliance.base.errors import ApplianceError, StorageError, UsageError
from appliance.base.locked_file import LockMode, try_lock
from appliance.machine.environments import CURRENT, PREVIOUS, Environments, version_key
from appliance.machine.errors import MachineCommandError
from appliance.machine.layout import Layout
from appliance.machine.update_bundle import (
    UpdateManifest,
    load_public_key,
    read_manifest,
    unpack,
)

_JOURNAL = "update.json"
_CATALOG_COPY = "catalog-before-update"
_CATALOG_COPY_TEMP = f"{_CATALOG_COPY}.tmp"
_CATALOG_FILES = "catalog.sqlite*"
_COPY_BYTES = 1 << 20
_SPACE_FACTOR = 6  # an environment over its wheels


class UpdateRefusedError(ApplianceError):
    """The update does not fit this appliance; nothing was changed. The message says why."""

    code = "update.refused"


class UpdateRolledBackError(ApplianceError):
    """The new version did not become healthy, so the one before runs again, with its catalog. Its
    last words are in the journal: sudo journalctl -u holdfast."""

    code = "update.rolled-back"


class DaemonControl(Protocol):
    """The daemon as systemd runs it."""

    def stop(self) -> None:
        """Raises MachineCommandError."""

    def start(self) -> None:
        """Returns when it says that it is ready. Raises MachineCommandError: it does not."""

    def healthy(self, version: str) -> bool:
        """Whether this version answers, and goes on answering for a while."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateResult:
    before: str
    now: str


def update(bundle: Path, layout: Layout, daemon: DaemonControl) -> UpdateResult:
    """Raises UpdateBundleError, UpdateSignatureError, UpdateRefusedError, UpdateRolledBackError,
    UsageError, StorageError, MachineCommandError."""
    environments = Environments(layout.environments)
    current = environments.version_of(CURRENT)
    if current is None:
        raise UsageError(f"{layout.environments}/{CURRENT} is not there: this is no appliance")
    key = load_public_key(layout.update_key)
    with _translated(), _alone(layout.environments):
        if (layout.environments / _JOURNAL).exists():
            raise UpdateRefusedError("an update was cut off; restart the appliance to settle it")
        with bundle.open("rb") as file:
            manifest = read_manifest(file, key)
            _check_fits(manifest, current, layout)
            with tempfile.TemporaryDirectory(prefix="wheels-", dir=layout.environments) as name:
                unpack(file, manifest, Path(name))
                environments.install(manifest.version, Path(name))
        _begin(layout, environments, daemon, current, manifest.version)
        return _finish(layout, environments, daemon, current, manifest.version)


def settle(layout: Layout, daemon: DaemonControl) -> UpdateResult | None:
    """Confirm or take back an update that was cut off; None when there was none.

    Raises as `update`.
    """
    with _translated(), _alone(layout.environments):
        journal = layout.environments / _JOURNAL
        if not journal.exists():
            return None
        document = json.loads(journal.read_bytes())
        before, now = str(document["before"]), str(document["now"])
        environments = Environments(layout.environments)
        if environments.version_of(CURRENT) == before:  # cut off before the switch
            with suppress(MachineCommandError):
                daemon.start()
            _forget(layout)
            return UpdateResult(before=before, now=before)
        return _finish(layout, environments, daemon, before, now)


def _begin(
    layout: Layout, environments: Environments, daemon: DaemonControl, before: str, now: str
) -> None:
    daemon.stop()
    try:
        _copy_catalog(layout)
        environments.point(PREVIOUS, before)  # before the journal: its program is who settles
        replace_file(
            layout.environments / _JOURNAL, json.dumps({"before": before, "now": now}).encode()
        )
        environments.point(CURRENT, now)
    except BaseException:
        if environments.version_of(CURRENT) == before:
            daemon.start()
            _forget(layout)
        raise


def _finish(
    layout: Layout, environments: Environments, daemon: DaemonControl, before: str, now: str
) -> UpdateResult:
    reason = ""
    try:
        daemon.start()
        if not daemon.healthy(now):
            reason = "it does not answer"
    except MachineCommandError as error:
        reason = str(error)
    if not reason:
        _forget(layout)
        environments.remove_others((now, before))
        return UpdateResult(before=before, now=now)
    with suppress(MachineCommandError):
        daemon.stop()
    _put_catalog_back(layout)
    environments.point(CURRENT, before)
    daemon.start()
    _forget(layout)
    environments.remove_others((before,))
    raise UpdateRolledBackError(f"{now}: {reason}; {before} runs again")


def _check_fits(manifest: UpdateManifest, current: str, layout: Layout) -> None:
    if version_key(manifest.version) <= version_key(current):
        raise UpdateRefusedError(f"{manifest.version} is not newer than {current}")
    running = ".".join(platform.python_version_tuple()[:2])
    if manifest.python != running:
        raise UpdateRefusedError(
            f"it is for Python {manifest.python}, this appliance has {running}: deploy a new one"
        )
    needed = _SPACE_FACTOR * sum(file.size_bytes for file in manifest.files)
    free = shutil.disk_usage(layout.environments).free
    if free < needed:
        raise UpdateRefusedError(f"it needs {needed >> 20} MiB of room, {free >> 20} MiB are free")


def _copy_catalog(layout: Layout) -> None:
    """The daemon is stopped. A copy that was cut off is made anew.

    The copy is kept where only root may write: the state folder belongs to the daemon's user, and
    root must not follow what somebody who took the daemon over has laid out there.
    """
    copy = layout.environments / _CATALOG_COPY
    temp = layout.environments / _CATALOG_COPY_TEMP
    for folder in (copy, temp):
        shutil.rmtree(folder, ignore_errors=True)
    temp.mkdir(mode=0o700)
    for path in layout.home.glob(_CATALOG_FILES):
        _copy_file(path, temp / path.name)
    fsync_directory(temp)
    temp.replace(copy)
    fsync_directory(layout.environments)


def _put_catalog_back(layout: Layout) -> None:
    """Every step may be repeated: the copy stays until the update is over."""
    copy = layout.environments / _CATALOG_COPY
    kept = sorted(path.name for path in copy.iterdir())
    for path in layout.home.glob(_CATALOG_FILES):
        if path.name not in kept:
            path.unlink()
    for name in kept:
        temp = layout.home / f".{name}.tmp"
        temp.unlink(missing_ok=True)
        _copy_file(copy / name, temp)
        temp.replace(layout.home / name)
    fsync_directory(layout.home)


def _copy_file(source: Path, target: Path) -> None:
    """A regular file, with its owner, to a name that does not exist; links are not followed."""
    read_fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        write_fd = os.open(target, flags, 0o600)
        try:
            owner = os.fstat(read_fd)
            with suppress(PermissionError):  # only root gives files away
                os.fchown(write_fd, owner.st_uid, owner.st_gid)
            while data := os.read(read_fd, _COPY_BYTES):
                write_all(write_fd, data)
            os.fsync(write_fd)
        finally:
            os.close(write_fd)
    finally:
        os.close(read_fd)


def _forget(layout: Layout) -> None:
    """The journal last: without it nothing is pending."""
    (layout.environments / _JOURNAL).unlink(missing_ok=True)
    fsync_directory(layout.environments)
    for name in (_CATALOG_COPY, _CATALOG_COPY_TEMP):
        shutil.rmtree(layout.environments / name, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(fd, LockMode.EXCLUSIVE):
            raise UpdateRefusedError("another update is going on")
        yield
    finally:
        os.close(fd)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error
