"""Restores to the practice vCenter in this process, and what must not be left by them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance.base.run_context import RunContext
from appliance.catalog.catalog import Catalog
from appliance.jobs.rollback_contract import RollbackOptions, RollbackResult
from appliance.jobs.vm_restore import RestoreRoom, VmRestoreOptions, VmRestoreResult, restore_vm
from appliance.jobs.vm_rollback import roll_back_vm
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.service.vm_sources import OpenedTarget, clean_up, open_target
from appliance.sources.vsphere_transports import SourceTools
from lab.vcenter.virtual_machine_engine import EngineMachine
from lab.vcenter.virtual_machine_import import ImportedMachines
from lab.vcenter.virtual_machine_setup import add_appliance
from tests.support.vm_lab import VmLab, quick_tools
from vmware.patience import Patience
from vmware.transports.appliance_disks import ApplianceDisks


@dataclass
class Restoring:
    lab: VmLab
    catalog: Catalog
    repository: Repository
    opened: OpenedTarget

    def point(self, vm: str) -> Manifest:
        found = self.repository.points.latest(vm)
        assert found is not None
        return found

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
        self, point: Manifest, context: RunContext | None = None, **options: Any
    ) -> RollbackResult:
        return roll_back_vm(
            self.room,
            self.lab.home,
            self.opened.source,
            self.opened.target,
            point,
            RollbackOptions(**options),
            context or RunContext.quiet(),
        )

    @property
    def room(self) -> RestoreRoom:
        catalog = self.catalog
        return RestoreRoom(
            repository=self.repository, runs=catalog.runs, run_locks=catalog.run_locks
        )

    def content(self, point: Manifest, number: int = 0) -> bytes:
        with contextlib.closing(self.repository.open_image(point, number)) as image:
            return image.read_at(0, image.size_bytes)

    def clean_up(self) -> None:
        clean_up(self.catalog, [self.opened.source])


@contextlib.contextmanager
def restoring(lab: VmLab, tools: SourceTools | None = None) -> Iterator[Restoring]:
    lab.plane.leases.imported = ImportedMachines()
    with (
        lab.catalog() as catalog,
        lab.repository() as repository,
        open_target(catalog, tools=tools or quick_tools()) as opened,
    ):
        yield Restoring(lab, catalog, repository, opened)


def appliance_tools(lab: VmLab, root: Path) -> SourceTools:
    """This machine as a VM of the lab, so that disks can be hot-added to it."""
    add_appliance(lab.inventory, "appliance", root)
    patience = Patience(wait=lambda seconds: time.sleep(min(seconds, 0.01)))
    return quick_tools(appliance_disks=ApplianceDisks(device_root=root, patience=patience))


def machine_named(lab: VmLab, name: str) -> EngineMachine:
    found = [one for one in machines(lab) if one.name == name]
    assert len(found) == 1, [one.name for one in machines(lab)]
    return found[0]


def machines(lab: VmLab) -> list[EngineMachine]:
    return list(lab.vcenter.registry.all(EngineMachine))


def disk_content(lab: VmLab, name: str, number: int = 0) -> bytes:
    """Of the base file of a disk; the VM is off, or the file frozen."""
    disk = machine_named(lab, name).engine.config.disks[number]
    path = lab.folder / disk.path.datastore / disk.path.path
    flat = path.with_name(path.name.removesuffix(".vmdk") + "-flat.vmdk")
    return flat.read_bytes()


def left_overs(lab: VmLab, catalog: Catalog) -> dict[str, Any]:
    """What a restore may not leave: everything here is to be compared with what was before."""
    return {
        "vms": sorted(one.name for one in machines(lab)),
        "disks": {one.name: len(one.engine.config.disks) for one in machines(lab)},
        "snapshots": {one.name: len(one.engine.snapshots) for one in machines(lab)},
        "folders": sorted(
            str(path.relative_to(lab.folder))
            for store in ("ds1", "ds2")
            for path in (lab.folder / store).iterdir()
        ),
        "leases": len(lab.plane.lease_table.open_leases()),
        "intents": len(catalog.intents.open_intents()),
    }
