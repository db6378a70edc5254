"""What runs of jobs work with beyond the repository: the daemon's side, as the runners see it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from appliance.base.run_context import CancelToken
from appliance.catalog.jobs import Jobs
from appliance.jobs.vm_backup import BackupRoom
from appliance.jobs.vm_selection import HostFailure
from appliance.sources.contract import Orphan, VmSource
from appliance.sources.vm_identity import PointNames


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedSources:
    sources: tuple[VmSource, ...]
    failures: tuple[HostFailure, ...]  # hosts that could not be logged in to


class Site(Protocol):
    """The hypervisors and the rest of the appliance."""

    def open_sources(self, hosts: Sequence[str]) -> AbstractContextManager[OpenedSources]:
        """Log in to the registered hosts of these names, or to all; a host that fails stops no
        other.

        Raises: HostNotFoundError, UsageError: none is registered; the error of the only host.
        """
        ...

    def clean_up(self, sources: Sequence[VmSource], cancel: CancelToken) -> list[Orphan]:
        """Remove what killed runs left on the hosts, or wait for who is at it.

        Raises: StorageError; CancelledError.
        """
        ...

    def point_names(self) -> PointNames:
        """The names that VMs have in the repository now."""
        ...

    def points_in_use(self) -> frozenset[str]:
        """The points that recovery sessions need, beyond a restart of the daemon too.

        Raises StorageError: it cannot be told.
        """
        ...

    def backup_goes_on(self) -> bool:
        """Whether a backup job runs here now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRoom:
    """What the runners of one daemon share."""

    site: Site
    backups: BackupRoom
    jobs: Jobs
