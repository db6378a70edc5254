"""What is known to go wrong is said before a VM is touched."""

from __future__ import annotations

from typing import Any

import pytest
from pyVmomi import vim

from tests.support.inventories import a_disk, a_vm
from tests.support.scripted_vcenter import ScriptedObject, ScriptedVcenter, ScriptedVm
from vmware.findings import Weight
from vmware.inventory import Connection, Power
from vmware.prechecks import check_vm

GIB = 1 << 30


class World:
    def __init__(self) -> None:
        self.server = ScriptedVcenter()
        self.vm = ScriptedVm(self.server)
        self.store: dict[str, Any] = {
            "summary.name": "ds",
            "summary.type": "VMFS",
            "summary.accessible": True,
            "summary.freeSpace": GIB,
            "summary.capacity": 10 * GIB,
        }
        self.server.objects["datastore-1"] = ScriptedObject(self.store)
        self.vm.values["datastore"] = [vim.Datastore("datastore-1", self.server)]

    def check(self, **fields: Any) -> dict[str, Weight]:
        found = check_vm(self.server.session(), a_vm(**fields))
        return {finding.code: finding.weight for finding in found}


@pytest.fixture
def world() -> World:
    return World()


def test_a_healthy_vm_has_nothing_against_it(world: World) -> None:
    """Silence means: go."""
    assert world.check() == {}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"connection": Connection.DISCONNECTED}, "vm.unavailable"),
        ({"question": "copied or moved?"}, "vm.question"),
        ({"fault_tolerant": True}, "vm.fault-tolerant"),
        ({"disks": (a_disk(shared_bus="physicalSharing"),)}, "vm.shared-bus"),
    ],
)
def test_what_the_inventory_shows_blocks_before_anything_else_is_read(
    world: World, fields: dict[str, Any], code: str
) -> None:
    """A VM that is away cannot even be asked."""
    del world.server.objects["vm-1"]
    assert world.check(**fields) == {code: Weight.BLOCKING}


def test_a_snapshot_in_the_background_blocks(world: World) -> None:
    """vSphere would refuse ours."""
    world.vm.values["runtime.snapshotInBackground"] = True
    assert world.check() == {"vm.snapshot-in-background": Weight.BLOCKING}


def test_a_needed_consolidation_warns(world: World) -> None:
    """A backup works, and makes the chain no shorter."""
    world.vm.values["runtime.consolidationNeeded"] = True
    assert world.check() == {"vm.consolidation-needed": Weight.WARNING}


@pytest.mark.parametrize(("state", "found"), [("running", True), ("success", False)])
def test_a_running_task_warns(world: World, state: str, found: bool) -> None:
    """A finished one does not; one that is gone does not either."""
    task = world.server.task(kind="VirtualMachine.migrate")
    world.server.objects[task._GetMoId()].values["info.state"] = state
    world.vm.values["recentTask"] = [task, vim.Task("task-gone", world.server)]
    assert world.check() == ({"vm.task-running": Weight.WARNING} if found else {})


def test_a_chain_at_its_limit_blocks(world: World) -> None:
    """32 levels are allowed, and ours is one."""
    for _ in range(30):
        world.vm.add_snapshot("x")
    assert world.check() == {}
    world.vm.add_snapshot("x")
    assert world.check() == {"vm.too-many-snapshots": Weight.BLOCKING}


def test_disks_that_snapshots_leave_out_warn_until_none_is_left(world: World) -> None:
    """The VM is backed up without them; without any disk it is not."""
    independent = a_disk(label="Hard disk 2", disk_mode="independent_persistent")
    assert world.check(disks=(a_disk(), independent)) == {"disk.independent": Weight.WARNING}
    assert world.check(disks=(independent,)) == {
        "vm.no-disk": Weight.BLOCKING,
        "disk.independent": Weight.WARNING,
    }


def test_a_shared_bus_of_a_vm_that_is_off_is_no_obstacle(world: World) -> None:
    """It matters only while it runs."""
    disk = a_disk(shared_bus="physicalSharing")
    assert world.check(power=Power.OFF, disks=(disk,)) == {}


def test_little_space_warns_and_no_datastore_blocks(world: World) -> None:
    """Less than a tenth of the VM's disks on it."""
    disk = a_disk(capacity_bytes=11 * GIB)
    assert world.check(disks=(disk,)) == {"vm.little-space": Weight.WARNING}
    elsewhere = a_disk(capacity_bytes=11 * GIB, file_name="[other] x.vmdk")
    assert world.check(disks=(elsewhere,)) == {}
    world.store["summary.accessible"] = False
    assert world.check() == {"vm.datastore-inaccessible": Weight.BLOCKING}


def test_a_lost_datastore_that_only_holds_an_image_of_a_cd_does_not_block(world: World) -> None:
    """The VM runs on without it, and its disks can be frozen and read."""
    world.store |= {"summary.accessible": False, "summary.name": "isos"}
    assert world.check() == {"vm.datastore-inaccessible": Weight.WARNING}


def test_what_blocks_comes_first(world: World) -> None:
    """And everything is said at once."""
    world.vm.values |= {
        "runtime.consolidationNeeded": True,
        "runtime.snapshotInBackground": True,
    }
    assert list(world.check()) == ["vm.snapshot-in-background", "vm.consolidation-needed"]
