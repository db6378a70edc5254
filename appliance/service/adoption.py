"""A new appliance takes over a repository that another one has made.

Nothing in the repository is changed but the local index, which is brought up to date from its index
segments. The state folder then has a link to it, `HOME/repository`, so every command and the daemon
use it from then on. What stood in that place stays beside it, and is refused if it holds recovery
points: two repositories do not become one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

from appliance.base.atomic import fsync_directory
from appliance.base.errors import ApplianceError, StorageError
from appliance.base.secret import Secret
from appliance.repository.repository import Repository
from appliance.service.daemon_lock import daemon_lock
from appliance.service.home import Home


class AdoptRefusedError(ApplianceError):
    """This appliance has a repository with recovery points of its own; nothing was changed. Use a
    new appliance, or another state folder."""

    code = "adopt.refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundRepository:
    repository_id: str
    encrypted: bool
    points: int
    vms: tuple[str, ...]
    unreadable: tuple[str, ...]
    """Recovery points that cannot be read; `repo check` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopted:
    repository: FoundRepository
    set_aside: Path | None
    """Where the empty repository from before lies."""


def adopt(
    home: Path,
    source: Path,
    *,
    passphrase: Secret | None = None,
    recovery_key: Secret | None = None,
) -> Adopted:
    """Idempotent. Raises AdoptRefusedError, DaemonRunningError, StorageError, and what opening a
    repository raises."""
    Home(home).prepare()
    place = home / "repository"
    with daemon_lock(home):
        found = _look(source, passphrase, recovery_key)
        set_aside = None
        try:
            if not (place.exists() and place.resolve() == source.resolve()):
                set_aside = _set_aside(place)
                place.symlink_to(source.resolve(), target_is_directory=True)
                fsync_directory(home)
        except OSError as error:
            raise StorageError(f"{error.filename}: {error.strerror}") from error
    return Adopted(repository=found, set_aside=set_aside)


def _look(source: Path, passphrase: Secret | None, recovery_key: Secret | None) -> FoundRepository:
    """Open it, which brings its index up to date, and read every manifest."""
    with Repository.open(source, passphrase=passphrase, recovery_key=recovery_key) as repository:
        manifests, damaged = repository.points.readable()
        return FoundRepository(
            repository_id=repository.config.repository_id,
            encrypted=repository.config.encrypted,
            points=len(manifests),
            vms=tuple(sorted({manifest.vm for manifest in manifests})),
            unreadable=tuple(sorted(damaged)),
        )


def _set_aside(place: Path) -> Path | None:
    """Move away what is there unless it holds recovery points: those lie in `points`."""
    if place.is_symlink():
        place.unlink()
        return None
    if not place.exists():
        return None
    if any((place / "points").glob("*")):
        raise AdoptRefusedError(f"{place} holds recovery points")
    aside = free_name(place.with_name("repository-before-adopt"))
    place.rename(aside)
    return aside


def free_name(path: Path) -> Path:
    """`path` with the first number behind it that nothing bears."""
    return next(
        each
        for number in count(1)
        if not (each := path.with_name(f"{path.name}-{number}")).exists()
    )
