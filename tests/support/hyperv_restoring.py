"""Restores to the practice Hyper-V host, in this process, and what they may not leave."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blake3 import blake3

from appliance.base.run_context import RunContext
from appliance.catalog.catalog import Catalog
from appliance.jobs.vm_restore import RestoreRoom, VmRestoreOptions, VmRestoreResult, restore_vm
from appliance.jobs.vm_rollback import PhaseBegins, RollbackOptions, RollbackResult, roll_back_vm
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.service.vm_sources import HostIntents, OpenedTarget, clean_up
from appliance.sources.intents import Made
from appliance.targets.hyperv import HypervTarget
from hyperv.disk_files import list_disk_files
from hyperv.shares import list_shares
from lab.hyperv_host.virtual_machine import HypervVm
from tests.support.hyperv_backups import HOST, HypervAppliance
from tests.support.hyperv_lab import PATIENCE, HypervLab


@dataclass
class HypervRestoring:
    appliance: HypervAppliance
    catalog: Catalog
    repository: Repository
    opened: OpenedTarget

    @property
    def room(self) -> RestoreRoom:
        catalog = self.catalog
        return RestoreRoom(
            repository=self.repository, runs=catalog.runs, run_locks=catalog.run_locks
        )

    def point(self, vm: str = "web") -> Manifest:
        found = self.repository.points.latest(vm)
        assert found is not None
        return found

    def digest(self, point: Manifest | None = None, number: int = 0) -> str:
        with contextlib.closing(self.repository.open_image(point or self.point(), number)) as image:
            return blake3(image.read_at(0, image.size_bytes)).hexdigest()

    def restore(
        self, point: Manifest, context: RunContext | None = None, **options: Any
    ) -> VmRestoreResult:
        return restore_vm(
            self.room,
            self.opened.target,
            point,
            VmRestoreOptions(**options),
            context or RunContext.quiet(),
        )

    def roll_back(
        self,
        point: Manifest,
        context: RunContext | None = None,
        phase_begins: PhaseBegins = lambda name, progress: None,
        **options: Any,
    ) -> RollbackResult:
        return roll_back_vm(
            self.room,
            self.appliance.home,
            self.opened.source,
            self.opened.target,
            point,
            RollbackOptions(**options),
            context or RunContext.quiet(),
            phase_begins,
        )

    def clean_up(self) -> None:
        for orphan in clean_up(self.catalog, [self.opened.source]):
            assert not orphan.failure, orphan


@contextlib.contextmanager
def hyperv_restoring(appliance: HypervAppliance) -> Iterator[HypervRestoring]:
    with (
        appliance.catalog() as catalog,
        appliance.repository() as repository,
        appliance.host_and_source(catalog) as (host, source),
    ):
        target = HypervTarget(host, HostIntents(catalog, HOST), catalog.appliance_id)
        opened = OpenedTarget(source=source, target=target)
        yield HypervRestoring(appliance, catalog, repository, opened)


def left_overs(here: HypervRestoring) -> dict[str, Any]:
    """What a restore may not leave: everything here is to be compared with what was before."""
    lab = here.appliance.lab
    host = lab.practice.host
    return {
        "vms": sorted(vm.settings.name for vm in host.vms()),
        "checkpoints": [len(vm.checkpoints) for vm in host.vms()],
        "files": sorted(
            str(path.relative_to(host.volumes.folder)) for path in host.volumes.folder.rglob("*")
        ),
        "lists": list_disk_files(lab.session, "holdfast-", PATIENCE),
        "shares": list_shares(lab.session, "holdfast-", PATIENCE),
        "intents": [
            intent
            for intent in here.catalog.intents.open_intents()
            if intent.kind != Made.REFERENCE_POINT
        ],
    }


def named(lab: HypervLab, name: str) -> HypervVm:
    (found,) = [vm for vm in lab.practice.host.vms() if vm.settings.name == name]
    return found


def disk_content(lab: HypervLab, name: str) -> bytes:
    """Of the first disk of a VM that is off."""
    with named(lab, name).opened_disks() as disks:
        disk = next(iter(disks.values()))
        return disk.read_at(0, disk.size_bytes)


def remove(lab: HypervLab, name: str) -> None:
    """A VM with its files, which are all in its own folder."""
    vm, volumes = named(lab, name), lab.practice.host.volumes
    paths = [drive.path for drive in vm.settings.drives if drive.path is not None]
    lab.practice.host.remove_vm(vm)
    for path in paths:
        volumes.place(path).unlink()
        for folder in (path.folder, path.folder.folder):
            with contextlib.suppress(OSError):
                volumes.place(folder).rmdir()
