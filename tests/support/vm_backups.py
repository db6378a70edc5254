"""Backups of the VMs of a fake source, with a repository and catalog of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.base.backoff import Backoff
from appliance.base.run_context import RunContext
from appliance.catalog.catalog import Catalog
from appliance.jobs.backup_limits import BackupLimits, LimitPolicy
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.vm_backup import BackupRoom, VmBackupOptions, VmResult, back_up_vms
from appliance.jobs.vm_selection import select_vms
from appliance.repository.repository import Repository
from appliance.sources.contract import VmSource
from appliance.sources.vm_identity import PointNames
from tests.support.small_backups import SMALL_PACKS

AT_ONCE = Backoff(attempts=3, first_s=0)
NO_AUDIT = AuditPolicy(percent=0)


@dataclass
class Place:
    """A state folder with a repository."""

    folder: Path
    repository: Repository
    catalog: Catalog

    def room(self, limits: LimitPolicy | None = None) -> BackupRoom:
        return BackupRoom(
            repository=self.repository,
            runs=self.catalog.runs,
            run_locks=self.catalog.run_locks,
            limits=BackupLimits(limits or LimitPolicy()),
            state_folder=self.folder,
        )

    def back_up(
        self,
        source: VmSource,
        patterns: Sequence[str] = ("*",),
        *,
        options: VmBackupOptions | None = None,
        limits: LimitPolicy | None = None,
        context: RunContext | None = None,
    ) -> list[VmResult]:
        names = PointNames([])
        selection = select_vms([source], patterns, (), names)
        options = options or VmBackupOptions(backoff=AT_ONCE, audit=NO_AUDIT)
        return back_up_vms(self.room(limits), selection.vms, options, context or RunContext.quiet())

    def content(self, vm: str, number: int = 0) -> bytes:
        """The newest point's disk, read back."""
        point = self.repository.points.latest(vm)
        assert point is not None
        with closing(self.repository.open_image(point, number)) as image:
            return image.read_at(0, image.size_bytes)


@contextmanager
def place(folder: Path) -> Iterator[Place]:
    Repository.create(folder / "repository")
    with (
        Repository.open(folder / "repository", options=SMALL_PACKS) as repository,
        Catalog.open(folder) as catalog,
    ):
        yield Place(folder, repository, catalog)
