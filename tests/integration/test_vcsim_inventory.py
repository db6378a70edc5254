"""The inventory against govmomi's simulator: complete, in one pass, and as govc sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from pyVmomi import vim
from pyVmomi.SoapAdapter import SoapStubAdapter

from tests.support.vcsim import Vcsim, vcsim
from vmware.datastores import list_datastores
from vmware.disks import disks_of
from vmware.errors import ObjectGoneError
from vmware.inventory import Power, VmInfo, find_vms, list_vms, read_vm, read_vms
from vmware.networks import list_networks
from vmware.properties import PAGE_OBJECTS
from vmware.session import Session
from vmware.tasks import wait_for_task

pytestmark = pytest.mark.integration

VMS = 1000


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    with vcsim("-vm", "5", "-host", "2", "-folder", "1", "-copies", "99") as running:
        yield running


@pytest.fixture
def session(server: Vcsim) -> Iterator[Session]:
    with server.connect() as opened:
        yield opened


@contextmanager
def counted_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """SOAP requests by the name of their method."""
    calls: Counter[str] = Counter()
    serialize = SoapStubAdapter.SerializeRequest

    def count(stub: Any, target: Any, info: Any, arguments: Any) -> Any:
        calls[info.wsdlName] += 1
        return serialize(stub, target, info, arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SoapStubAdapter, "SerializeRequest", count)
        yield calls


def reconfigure(session: Session, moref: str, spec: vim.vm.ConfigSpec) -> None:
    vm = session.object(vim.VirtualMachine, moref)
    task = session.call("reconfigure", vm.ReconfigVM_Task, spec)
    wait_for_task(session, task, what="reconfigure", deadline_s=30)


def test_a_thousand_vms_take_one_pass(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """One question, then pages: no call per VM, per host or per folder."""
    with counted_calls(monkeypatch) as calls:
        vms = list_vms(session)
    assert len(vms) == VMS
    assert calls["RetrievePropertiesEx"] == 1
    assert calls["ContinueRetrievePropertiesEx"] <= VMS // PAGE_OBJECTS + 1
    assert sum(calls.values()) <= 6, calls


def test_the_inventory_is_what_govc_finds(server: Vcsim, session: Session) -> None:
    """Folder and name of each VM form the inventory path that the other client prints."""
    ours = {f"/{vm.folder_path}/{vm.name}" for vm in list_vms(session)}
    theirs = server.govc("find", "/", "-type", "m").split("\n")
    assert ours == {path for path in theirs if path}


def test_a_listed_vm_carries_its_places_and_its_disks(session: Session) -> None:
    """Ids are resolved to the names that people and URLs use."""
    vm = next(vm for vm in list_vms(session) if vm.name == "DC0_C0_RP0_VM0")
    assert vm.power is Power.ON
    assert vm.datacenter_path == "F0/DC0"
    assert vm.folder_path.startswith("F0/DC0/vm")
    assert vm.cluster_name == "DC0_C0"
    assert vm.host_name.startswith("DC0_C0_H")
    assert vm.vmx_file_name.startswith("[LocalDS_0] ")
    (disk,) = vm.disks
    assert disk.capacity_bytes == 10 * 2**30
    assert disk.controller_type == "ParaVirtualSCSIController"
    assert disk.address == "scsi0:0"
    assert disk.datastore_name == "LocalDS_0"
    assert not vm.unreadable


def test_the_list_and_a_single_read_agree(session: Session) -> None:
    """Both ways to the same VM give the same value."""
    listed = {vm.moref: vm for vm in list_vms(session)}
    for moref in list(listed)[::97]:
        assert read_vm(session, moref) == listed[moref]


def test_disks_read_as_xml_and_as_objects_are_equal(session: Session) -> None:
    """The inventory's reader and the one for snapshots know the same facts of each disk."""
    vm = find_vms(session, ["DC0_H0_VM0"])[0]
    target = session.object(vim.VirtualMachine, vm.moref)
    disk = next(d for d in target.config.hardware.device if d.key == vm.disks[0].key)
    disk.backing.changeId = "52 de c0 d9/7"
    disk.backing.sharing = "sharingNone"
    reconfigure(
        session,
        vm.moref,
        vim.vm.ConfigSpec(
            changeTrackingEnabled=True,
            deviceChange=[vim.vm.device.VirtualDeviceSpec(operation="edit", device=disk)],
        ),
    )
    after = read_vm(session, vm.moref)
    assert after.cbt_enabled
    assert after.disks[0].change_id == "52 de c0 d9/7"
    assert after.disks == disks_of(target.config.hardware.device)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("DC0_C0_RP0_VM1", 1),
        ("*_VM1_copy7", 2),
        ("DC0_H0_VM[23]", 2),
        ("no-such-vm", 0),
        ("*", VMS),
    ],
)
def test_vms_are_found_by_name_or_glob(session: Session, pattern: str, count: int) -> None:
    """A plain name is one VM; a glob is all that match."""
    assert len(find_vms(session, [pattern])) == count


def test_vms_are_found_by_id_and_by_instance_uuid(session: Session) -> None:
    """The forms that scripts have; several patterns never give a VM twice."""
    vm = find_vms(session, ["DC0_H0_VM4"])[0]
    patterns = [vm.moref, vm.instance_uuid.upper(), vm.name]
    assert find_vms(session, patterns) == [vm]


def test_finding_one_vm_reads_the_details_of_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All others give their name only."""
    read: list[VmInfo] = []
    monkeypatch.setattr("vmware.inventory.disks_of_xml", lambda devices: read.append(devices) or ())
    assert len(find_vms(session, ["DC0_H0_VM3"])) == 1
    assert len(read) == 1


def test_a_vm_that_vanished_is_left_out_of_a_group(session: Session) -> None:
    """One deleted VM does not spoil the reading of the others."""
    morefs = [vm.moref for vm in find_vms(session, ["DC0_H0_VM0", "DC0_H0_VM1"])]
    assert [vm.moref for vm in read_vms(session, [*morefs, "vm-987654"])] == morefs
    with pytest.raises(ObjectGoneError):
        read_vm(session, "vm-987654")


def test_an_escaped_name_is_shown_as_people_wrote_it(session: Session) -> None:
    """A slash in a name is escaped by the server, not by us."""
    vm = find_vms(session, ["DC0_H0_VM4_copy4"])[0]
    reconfigure(session, vm.moref, vim.vm.ConfigSpec(name="db%2fwest 100%25"))
    assert [found.moref for found in find_vms(session, ["db/west 100%"])] == [vm.moref]


def test_datastores_and_networks_are_listed(session: Session) -> None:
    """Space and hosts of a datastore; kind, switch and VLAN of a network."""
    (datastore,) = list_datastores(session)
    assert datastore.name == "LocalDS_0"
    assert datastore.accessible and 0 < datastore.free_bytes <= datastore.capacity_bytes
    assert len(datastore.writable_hosts) == 3
    kinds = {network.name: (network.kind, network.vlan) for network in list_networks(session)}
    assert kinds["VM Network"] == ("standard", "")
    assert kinds["DC0_DVPG0"] == ("distributed", "0")
    assert ("distributed", "0-4094") in kinds.values()  # the uplinks


def test_several_datacenters_keep_their_vms_apart() -> None:
    """Equal folder names below two datacenters stay two places."""
    with vcsim("-dc", "2", "-vm", "1", "-cluster", "0") as server, server.connect() as session:
        places = {vm.name: vm.datacenter_path for vm in list_vms(session)}
    assert places == {"DC0_H0_VM0": "DC0", "DC1_H0_VM0": "DC1"}
