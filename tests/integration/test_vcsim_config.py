"""Against govmomi's simulator: tasks, snapshots, captured configuration, tags, privileges."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim

from tests.support.vcsim import Vcsim, vcsim
from vmware.config_capture import SCHEMA, capture
from vmware.errors import (
    InvalidPowerStateError,
    LoginError,
    ObjectGoneError,
    UnsupportedError,
)
from vmware.inventory import VmInfo, find_vms, read_vm
from vmware.privileges import PRIVILEGES, Purpose, missing_privileges
from vmware.rest import Dialect, RestSession
from vmware.session import Session
from vmware.tags import Tags
from vmware.tasks import wait_for_task

pytestmark = pytest.mark.integration

VM = "DC0_C0_RP0_VM0"
OTHER = "DC0_C0_RP0_VM1"
VM_PATH = f"/DC0/vm/{VM}"


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    with vcsim("-vm", "2", "-host", "2") as running:
        yield running


@pytest.fixture(scope="module")
def session(server: Vcsim) -> Iterator[Session]:
    with server.connect() as opened:
        yield opened


@pytest.fixture
def vm(session: Session) -> VmInfo:
    return find_vms(session, [VM])[0]


def run(session: Session, what: str, method: Any, *args: Any, **named: Any) -> Any:
    task = session.call(what, method, *args, **named)
    return wait_for_task(session, task, what=what, deadline_s=30)


def take_snapshot(session: Session, vm: VmInfo, name: str) -> Any:
    target = session.object(vim.VirtualMachine, vm.moref)
    return run(
        session,
        "create a snapshot",
        target.CreateSnapshot_Task,
        name=name,
        description="",
        memory=False,
        quiesce=False,
    )


def test_a_task_returns_what_it_made(session: Session, vm: VmInfo) -> None:
    """A snapshot's task gives the snapshot; removing it leaves the VM as before."""
    snapshot = take_snapshot(session, vm, "one")
    assert isinstance(snapshot, vim.vm.Snapshot)
    assert read_vm(session, vm.moref).has_snapshots
    run(session, "remove it", snapshot.RemoveSnapshot_Task, removeChildren=False, consolidate=True)
    assert not read_vm(session, vm.moref).has_snapshots


def test_a_failed_task_raises_the_kind_of_its_fault(session: Session, vm: VmInfo) -> None:
    """A VM that is on cannot be switched on: the task fails, not the call."""
    target = session.object(vim.VirtualMachine, vm.moref)
    with pytest.raises(InvalidPowerStateError, match="switch it on"):
        run(session, "switch it on", target.PowerOnVM_Task)


def test_a_task_that_is_gone_is_told_so(session: Session) -> None:
    """Servers forget finished tasks; a stale id is no crash and no endless wait."""
    with pytest.raises(ObjectGoneError):
        wait_for_task(session, session.object(vim.Task, "task-0"), what="wait", deadline_s=5)


def test_the_captured_document_rebuilds_the_hardware(session: Session, vm: VmInfo) -> None:
    """Configuration, files, placement and NICs with names; plain JSON through and through."""
    snapshot = take_snapshot(session, vm, "two")
    document = capture(session, vm.moref, snapshot._GetMoId())
    assert json.loads(json.dumps(document)) == document
    assert document["schema"] == SCHEMA
    assert document["vm"]["name"] == VM
    assert document["vm"]["snapshot"] == snapshot._GetMoId()
    config = document["config"]
    assert config["_vimtype"] == "vim.vm.ConfigInfo"
    assert config["hardware"]["numCPU"] == 1
    disks = [
        d for d in config["hardware"]["device"] if d["_vimtype"] == "vim.vm.device.VirtualDisk"
    ]
    assert disks[0]["backing"]["fileName"] == vm.disks[0].file_name
    assert document["placement"]["folder_path"] == "DC0/vm"
    assert document["placement"]["resource_pool_path"] == "DC0/host/DC0_C0/Resources"
    assert document["placement"]["datastores"][0]["name"] == "LocalDS_0"
    (nic,) = document["nics"]
    assert nic["network_name"] == "DC0_DVPG0"
    assert nic["network"]["switch_name"] == "DVS0"
    assert nic["mac"].count(":") == 5
    assert document["source"]["host"]["build"]


def test_vmx_and_nvram_are_captured_byte_for_byte(
    server: Vcsim, session: Session, vm: VmInfo, tmp_path: Any
) -> None:
    """Both come through the datastore's HTTPS, as they are."""
    contents = {"vmx": b'memSize = "32"\n', "nvram": bytes(range(256)) * 300}
    for kind, content in contents.items():
        (tmp_path / kind).write_bytes(content)
        server.govc(
            "datastore.upload", "-ds", "LocalDS_0", str(tmp_path / kind), f"{VM}/{VM}.{kind}"
        )
    files = capture(session, vm.moref, None)["files"]
    assert {kind: base64.b64decode(files[kind]["base64"]) for kind in contents} == contents
    assert files["nvram"]["name"] == f"[LocalDS_0] {VM}/{VM}.nvram"


def test_a_part_that_cannot_be_had_is_listed_and_the_rest_is_there(
    session: Session, vm: VmInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is too large costs itself, with a code and a reason."""
    monkeypatch.setattr("vmware.config_capture.NVRAM_BYTES_MAX", 5)
    document = capture(session, vm.moref, None)
    assert document["files"]["nvram"] is None
    missing = {item["part"]: item for item in document["not_captured"]}
    assert missing["nvram"]["code"] == "vsphere.file"
    assert "larger than 5" in missing["nvram"]["text"]
    assert document["files"]["vmx"] and document["nics"]


def test_tags_come_with_what_it_takes_to_make_them_again(server: Vcsim, session: Session) -> None:
    """Names, cardinality and types instead of ids; found from the VM and from the tag."""
    server.govc("tags.category.create", "-d", "How hard we try", "-t", "VirtualMachine", "Service")
    server.govc("tags.category.create", "-m", "Owner")
    server.govc("tags.create", "-c", "Service", "-d", "nightly", "gold")
    server.govc("tags.create", "-c", "Owner", "payroll")
    server.govc("tags.create", "-c", "Owner", "gold")
    server.govc("tags.attach", "-c", "Service", "gold", VM_PATH)
    server.govc("tags.attach", "-c", "Owner", "payroll", VM_PATH)
    server.govc("tags.attach", "-c", "Owner", "gold", f"/DC0/vm/{OTHER}")
    vm, other = find_vms(session, [VM, OTHER])
    with RestSession.connect(session) as rest:
        assert rest.dialect is Dialect.LEGACY  # all that vcsim has
        tags = Tags(rest)
        payroll, gold = tags.of_vms([vm.moref])[vm.moref]
        assert (payroll.category.name, payroll.name) == ("Owner", "payroll")
        assert payroll.category.cardinality == "MULTIPLE"
        assert (gold.category.name, gold.name, gold.description) == ("Service", "gold", "nightly")
        assert gold.category.associable_types == ("VirtualMachine",)
        assert gold.category.cardinality == "SINGLE"
        assert tags.vms_with("Service/gold") == [vm.moref]
        assert tags.vms_with("gold") == sorted([vm.moref, other.moref])
        assert tags.vms_with("silver") == []
    captured = capture(session, vm.moref, None)["tags"]
    assert [tag["name"] for tag in captured] == ["payroll", "gold"]


def test_a_wrong_password_is_a_login_error_over_rest_too(server: Vcsim) -> None:
    """The second login reports as the first."""
    with server.connect() as session:
        session._password = lambda: "wrong"
        with pytest.raises(LoginError):
            RestSession.connect(session)


def test_an_esxi_host_has_no_tags() -> None:
    """Asking a lone host is refused, and its VMs are captured without a complaint about tags."""
    with vcsim("-esx", "-vm", "1") as host, host.connect() as session:
        with pytest.raises(UnsupportedError):
            RestSession.connect(session)
        (vm,) = find_vms(session, ["*"])
        document = capture(session, vm.moref, None)
        assert document["tags"] == document["custom_attributes"] == []
        assert not {item["part"] for item in document["not_captured"]} & {"tags", "source"}


def test_custom_attributes_come_by_name(server: Vcsim, session: Session, vm: VmInfo) -> None:
    """The keys of this vCenter are resolved."""
    server.govc("fields.add", "-type", "VirtualMachine", "Cost centre")
    server.govc("fields.add", "Contact")
    server.govc("fields.set", "Cost centre", "4711", VM_PATH)
    server.govc("fields.set", "Contact", "jo@example.org", VM_PATH)
    assert capture(session, vm.moref, None)["custom_attributes"] == [
        {"name": "Contact", "value": "jo@example.org", "object_type": ""},
        {"name": "Cost centre", "value": "4711", "object_type": "VirtualMachine"},
    ]


def test_a_nic_on_a_standard_port_group_keeps_its_name(server: Vcsim, session: Session) -> None:
    """Standard networks have a name and no switch; both NICs are there in order."""
    server.govc("vm.network.add", "-vm", f"/DC0/vm/{OTHER}", "-net", "VM Network")
    other = find_vms(session, [OTHER])[0]
    first, second = capture(session, other.moref, None)["nics"]
    assert first["network"]["kind"] == "distributed"
    assert (second["network_name"], second["network"]["kind"]) == ("VM Network", "standard")


def test_every_privilege_of_the_table_can_be_asked_for(session: Session) -> None:
    """The simulator's administrator lacks nothing; each purpose has its list."""
    assert missing_privileges(session, list(Purpose)) == []
    assert set(PRIVILEGES) == set(Purpose)
