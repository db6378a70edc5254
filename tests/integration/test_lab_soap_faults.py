"""A practice vCenter on a bad day, as pyVmomi meets it."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any
from xml.parsers.expat import ExpatError

import pytest
from pyVmomi import vim, vmodl

from lab.faults import FaultName
from lab.vcenter.inventory import Inventory, add_synthetic_machines, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from tests.support.lab import client, filter_for


@pytest.fixture
def vcenter() -> Iterator[LabVcenter]:
    with LabVcenter() as vcenter:
        yield vcenter


@pytest.fixture
def inventory(vcenter: LabVcenter) -> Inventory:
    inventory = build_inventory(vcenter)
    add_synthetic_machines(inventory, 2)
    return inventory


@pytest.fixture
def instance(vcenter: LabVcenter) -> Iterator[Any]:
    with client(vcenter) as instance:
        yield instance


def test_a_session_is_dropped(vcenter: LabVcenter, instance: Any) -> None:
    """The next call is NotAuthenticated, and so are those after it."""
    content = instance.RetrieveContent()
    vcenter.switches.arm(FaultName.SESSION_DROP, method="FindByUuid")
    for _ in range(2):
        with pytest.raises(vim.fault.NotAuthenticated):
            content.searchIndex.FindByUuid(None, "x", True, True)
    assert vcenter.switches.fired(FaultName.SESSION_DROP) == 1
    assert vcenter.sessions.all() == []


def test_a_task_is_started_and_its_reply_lost(
    vcenter: LabVcenter, inventory: Inventory, instance: Any
) -> None:
    """The client sees a broken connection; the work is done all the same."""
    machine = inventory.machines[0]
    vcenter.switches.arm(FaultName.LOST_TASK_REPLY, method="Rename_Task", vm=machine.moid)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        machine.vim_type(machine.moid, instance._stub).Rename("renamed")
    (task,) = [task for task in vcenter.tasks.recent() if task is not None][-1:]
    vcenter.registry.get(task._moId).finished.wait(10)  # type: ignore[union-attr]
    assert machine.name == "renamed"


def test_calls_are_refused_and_answered_with_rubbish(
    vcenter: LabVcenter, inventory: Inventory, instance: Any
) -> None:
    """Each once, then it works."""
    machine = inventory.machines[0].vim_type(inventory.machines[0].moid, instance._stub)
    vcenter.switches.arm(FaultName.PRIVILEGE_LOST, method="Rename_Task")
    with pytest.raises(vim.fault.NoPermission):
        machine.Rename("a")
    vcenter.switches.arm(FaultName.TASK_IN_PROGRESS, method="Rename_Task")
    with pytest.raises(vim.fault.TaskInProgress):
        machine.Rename("a")
    vcenter.switches.arm(FaultName.SOAP_500, method="Rename_Task")
    with pytest.raises(ExpatError):  # all that pyVmomi says of it
        machine.Rename("a")
    vcenter.switches.arm(FaultName.TASK_FAILURE, method="Rename_Task")
    task = machine.Rename("a")
    vcenter.registry.get(task._moId).finished.wait(10)  # type: ignore[union-attr]
    assert isinstance(task.info.error, vmodl.fault.SystemError)
    task = machine.Rename("a")
    vcenter.registry.get(task._moId).finished.wait(10)  # type: ignore[union-attr]
    assert inventory.machines[0].name == "a"


def test_a_configuration_can_be_missing(
    vcenter: LabVcenter, inventory: Inventory, instance: Any
) -> None:
    """It comes in missingSet with NoPermission; the other VM's is there."""
    hidden = inventory.machines[1].moid
    vcenter.switches.arm(FaultName.MISSING_PROPERTY, vm=hidden)
    content = instance.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    spec = filter_for(view, vim.VirtualMachine, ["name", "config.uuid"])
    options = type(content.propertyCollector).RetrieveOptions()
    page = content.propertyCollector.RetrievePropertiesEx([spec], options)
    by_id = {found.obj._moId: found for found in page.objects}
    (missing,) = by_id[hidden].missingSet
    assert missing.path == "config.uuid"
    assert isinstance(missing.fault, vim.fault.NoPermission)
    assert [prop.name for prop in by_id[hidden].propSet] == ["name"]
    assert not by_id[inventory.machines[0].moid].missingSet
