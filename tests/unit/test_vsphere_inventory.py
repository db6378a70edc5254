"""What is made of the server's answers: whole VMs, half-known VMs, disks of every kind."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
from pyVmomi import vim
from pyVmomi.SoapAdapter import SerializeToStr

from vmware import properties
from vmware.disks import DiskInfo, disk_obstacle, disks_of, disks_of_xml, split_file_name
from vmware.errors import SessionLostError
from vmware.inventory import Connection, Power, VmInfo, list_vms, vm_obstacle
from vmware.places import plain_name

device = vim.vm.device
Disk = device.VirtualDisk


# A server's answers, in XML


def reference(name: str, kind: str, moref: str) -> str:
    return f'<{name} type="{kind}">{moref}</{name}>'


def prop(name: str, value: str, kind: str = "xsd:string") -> str:
    return f'<propSet><name>{name}</name><val xsi:type="{kind}">{value}</val></propSet>'


def link(name: str, kind: str, moref: str) -> str:
    value = f'<val type="{kind}" xsi:type="ManagedObjectReference">{moref}</val>'
    return f"<propSet><name>{name}</name>{value}</propSet>"


def missing(path: str, fault: str) -> str:
    body = f'<fault><fault xsi:type="{fault}"/><localizedMessage/></fault>'
    return f"<missingSet><path>{path}</path>{body}</missingSet>"


def thing(kind: str, moref: str, *content: str) -> str:
    return f"<objects>{reference('obj', kind, moref)}{''.join(content)}</objects>"


def page(*objects: str, token: str = "") -> ElementTree.Element:
    mark = f"<token>{token}</token>" if token else ""
    return ElementTree.fromstring(
        '<returnval xmlns="urn:vim25" xmlns:xsd="http://www.w3.org/2001/XMLSchema" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        f"{mark}{''.join(objects)}</returnval>"
    )


PLACES = (
    thing("Folder", "group-d1", prop("name", "Datacenters")),
    thing("Folder", "group-d2", prop("name", "North"), link("parent", "Folder", "group-d1")),
    thing("Datacenter", "dc-1", prop("name", "A%2fB"), link("parent", "Folder", "group-d2")),
    thing("Folder", "group-v1", prop("name", "vm"), link("parent", "Datacenter", "dc-1")),
    thing("Folder", "group-h1", prop("name", "host"), link("parent", "Datacenter", "dc-1")),
    thing(
        "ClusterComputeResource", "c-1", prop("name", "Gold"), link("parent", "Folder", "group-h1")
    ),
    thing(
        "HostSystem",
        "host-1",
        prop("name", "esx1"),
        link("parent", "ClusterComputeResource", "c-1"),
    ),
    thing(
        "ResourcePool",
        "p-1",
        prop("name", "Resources"),
        link("parent", "ClusterComputeResource", "c-1"),
    ),
    thing(
        "VirtualApp",
        "app-1",
        prop("name", "shop"),
        link("parent", "ResourcePool", "p-1"),
        link("parentFolder", "Folder", "group-v1"),
    ),
)


class Answers:
    """Stands for a session whose server gives these pages in turn."""

    def __init__(self, pages: list[ElementTree.Element]) -> None:
        self.pages = pages
        views = SimpleNamespace(CreateContainerView=lambda *_args: View("view-1", None))
        self.content = SimpleNamespace(
            rootFolder=vim.Folder("group-d1", None), viewManager=views, propertyCollector=None
        )

    def read(self, what: str, function: Any, *args: Any) -> Any:
        return function(*args)


class View(vim.view.ContainerView):  # type: ignore[misc]
    def DestroyView(self) -> None:
        """The server would."""


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*pages: ElementTree.Element) -> dict[str, VmInfo]:
        session = Answers(list(pages))
        monkeypatch.setattr(properties.soap_tree, "invoke", lambda *_args: session.pages.pop(0))
        found = {vm.moref: vm for vm in list_vms(session)}  # type: ignore[arg-type]
        assert not session.pages
        return found

    return run


def test_a_vm_is_put_together_over_several_pages(listed: Any) -> None:
    """Names may come on a later page than the VM that lies below them."""
    vm = thing(
        "VirtualMachine",
        "vm-1",
        prop("name", "web%25"),
        link("parent", "Folder", "group-v1"),
        link("runtime.host", "HostSystem", "host-1"),
        link("resourcePool", "ResourcePool", "p-1"),
        prop("config.version", "vmx-21"),
        prop("config.changeTrackingEnabled", "true", "xsd:boolean"),
        prop("runtime.powerState", "poweredOn", "VirtualMachinePowerState"),
        prop("runtime.connectionState", "connected", "VirtualMachineConnectionState"),
        prop("guest.toolsRunningStatus", "guestToolsRunning"),
    )
    found = listed(page(vm, token="1"), page(*PLACES))["vm-1"]
    assert found.name == "web%"
    assert found.folder_path == "North/A%2fB/vm"
    assert found.datacenter_path == "North/A%2fB"
    assert (found.host_name, found.cluster_name) == ("esx1", "Gold")
    assert found.hardware_version == 21
    assert found.cbt_enabled and not found.cbt_supported
    assert (found.power, found.connection) == (Power.ON, Connection.CONNECTED)
    assert found.tools_running and not found.has_snapshots and not found.question


def test_a_vm_of_a_vapp_lies_in_the_folder_of_the_vapp(listed: Any) -> None:
    """Such a VM has no folder of its own."""
    vm = thing(
        "VirtualMachine", "vm-1", prop("name", "db"), link("parentVApp", "VirtualApp", "app-1")
    )
    assert listed(page(vm, *PLACES))["vm-1"].folder_path == "North/A%2fB/vm"


def test_a_vm_on_a_lost_host_is_listed_with_what_is_known(listed: Any) -> None:
    """Without a configuration there is still a name, a state, and no disk."""
    vm = thing(
        "VirtualMachine",
        "vm-1",
        prop("name", "lost"),
        prop("runtime.connectionState", "inaccessible", "VirtualMachineConnectionState"),
    )
    found = listed(page(vm))["vm-1"]
    assert found.disks == () and found.hardware_version == 0
    obstacle = vm_obstacle(found)
    assert obstacle and obstacle.code == "vm.unavailable"


def test_an_unreadable_property_costs_itself(listed: Any) -> None:
    """A missing privilege is named with its path; the other properties are there."""
    vm = thing(
        "VirtualMachine", "vm-1", prop("name", "secret"), missing("config.keyId", "NoPermission")
    )
    found = listed(page(vm))["vm-1"]
    assert found.name == "secret"
    assert [(item.path, item.fault) for item in found.unreadable] == [
        ("config.keyId", "NoPermission")
    ]


def test_properties_unreadable_for_want_of_a_session_are_a_lost_session(listed: Any) -> None:
    """The server does not fail the call then; an inventory of empty VMs would be the result."""
    vm = thing("VirtualMachine", "vm-1", missing("name", "NotAuthenticated"))
    with pytest.raises(SessionLostError):
        listed(page(vm))


def test_states_that_are_not_known_yet_are_unknown(listed: Any) -> None:
    """A newer server may have words that we do not."""
    vm = thing("VirtualMachine", "vm-1", prop("runtime.powerState", "hibernating"))
    assert listed(page(vm))["vm-1"].power is Power.UNKNOWN


def test_a_question_is_shown_and_is_an_obstacle(listed: Any) -> None:
    """A VM that waits for an answer cannot be backed up."""
    question = (
        '<propSet><name>runtime.question</name><val xsi:type="VirtualMachineQuestionInfo">'
        "<id>1</id><text>Moved or copied?</text></val></propSet>"
    )
    found = listed(page(thing("VirtualMachine", "vm-1", question)))["vm-1"]
    assert found.question == "Moved or copied?"
    obstacle = vm_obstacle(found)
    assert obstacle and obstacle.code == "vm.question"


def test_an_empty_inventory_is_empty(listed: Any) -> None:
    """No VMs is no error."""
    assert listed(page(*PLACES)) == {}


# Disks


def flat(**named: Any) -> Any:
    defaults = {"fileName": "[ds 1] a/a.vmdk", "diskMode": "persistent", "uuid": "6000C29"}
    return Disk.FlatVer2BackingInfo(**(defaults | named))


BACKINGS = {
    "plain": flat(thinProvisioned=True, changeId="52 1c/3", sharing="sharingNone"),
    "chain": flat(
        fileName="[ds 1] a/a-000002.vmdk",
        parent=flat(fileName="[ds 1] a/a-000001.vmdk", parent=flat()),
    ),
    "encrypted": flat(keyId=vim.encryption.CryptoKeyId(keyId="k1")),
    "sparse": Disk.SparseVer2BackingInfo(fileName="[x] y.vmdk", diskMode="persistent"),
    "sesparse": Disk.SeSparseBackingInfo(fileName="[x] y.vmdk", diskMode="persistent"),
    "rdm": Disk.RawDiskMappingVer1BackingInfo(
        fileName="[x] r.vmdk",
        diskMode="independent_persistent",
        compatibilityMode="physicalMode",
        lunUuid="02",
    ),
    "raw": Disk.RawDiskVer2BackingInfo(descriptorFileName="d", deviceName="disk0"),
}
CONTROLLERS = {
    "scsi": device.ParaVirtualSCSIController(key=1000, busNumber=1, sharedBus="noSharing"),
    "sata": device.VirtualAHCIController(key=1000, busNumber=0),
    "ide": device.VirtualIDEController(key=1000, busNumber=0),
    "nvme": device.VirtualNVMEController(key=1000, busNumber=2),
}


def machine(backing: Any, controller: Any) -> Any:
    disk = Disk(
        key=2000,
        controllerKey=1000,
        unitNumber=3,
        capacityInKB=4096,
        capacityInBytes=4096 * 1024,
        deviceInfo=vim.Description(label="Hard disk 1", summary=""),
        backing=backing,
        vDiskId=vim.vslm.ID(id="fcd-1"),
    )
    return [controller, device.VirtualVideoCard(key=500), disk]


def as_xml(devices: list[Any]) -> ElementTree.Element:
    """As the server sends it."""
    listing = device.VirtualDevice.Array(devices)
    return ElementTree.fromstring(SerializeToStr(listing, version="vim.version.v8_0_3_0"))


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("backing", BACKINGS)
def test_both_readers_of_disks_agree(backing: str, controller: str) -> None:
    """XML and pyVmomi's objects give the same facts for every backing and every controller."""
    devices = machine(BACKINGS[backing], CONTROLLERS[controller])
    (disk,) = disks_of(devices)
    assert disks_of_xml(as_xml(devices)) == (disk,)
    assert disk.controller_family == controller
    assert disk.capacity_bytes == 4 << 20
    assert disk.vdisk_id == "fcd-1"


def test_a_chain_is_read_leaf_first() -> None:
    """The frozen file is at the head, the base at the end."""
    (disk,) = disks_of(machine(BACKINGS["chain"], CONTROLLERS["scsi"]))
    assert disk.chain == (
        "[ds 1] a/a-000002.vmdk",
        "[ds 1] a/a-000001.vmdk",
        "[ds 1] a/a.vmdk",
    )
    assert (disk.address, disk.datastore_name) == ("scsi1:3", "ds 1")


def plain_disk(**named: Any) -> DiskInfo:
    (disk,) = disks_of(machine(BACKINGS["plain"], CONTROLLERS["scsi"]))
    return dataclasses.replace(disk, **named)


@pytest.mark.parametrize(
    ("disk", "code"),
    [
        (plain_disk(), None),
        (plain_disk(rdm_compatibility="virtualMode"), None),
        (plain_disk(disk_mode="independent_nonpersistent"), "disk.independent"),
        (plain_disk(rdm_compatibility="physicalMode"), "disk.physical-rdm"),
        (plain_disk(sharing="sharingMultiWriter"), "disk.multi-writer"),
        (plain_disk(shared_bus="physicalSharing"), "disk.shared-bus"),
        (plain_disk(file_name=""), "disk.unknown-backing"),
    ],
)
def test_a_disk_that_no_snapshot_covers_says_why(disk: DiskInfo, code: str | None) -> None:
    """Each case has its own code and its own next step."""
    obstacle = disk_obstacle(disk)
    assert (obstacle.code if obstacle else None) == code
    assert obstacle is None or (disk.label in obstacle.text and obstacle.next_step)


def test_a_shared_bus_is_no_obstacle_while_the_vm_is_off() -> None:
    """Snapshots are refused for running VMs only."""
    assert disk_obstacle(plain_disk(shared_bus="virtualSharing"), vm_off=True) is None


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("[ds] a/b.vmdk", ("ds", "a/b.vmdk")),
        ("[my ds (1)] b.vmdk", ("my ds (1)", "b.vmdk")),
        ("[ds]", ("ds", "")),
        ("a/b.vmdk", ("", "")),
        ("", ("", "")),
    ],
)
def test_file_names_come_apart(name: str, parts: tuple[str, str]) -> None:
    """Anything else than `[datastore] path` has neither."""
    assert split_file_name(name) == parts


def test_names_are_unescaped_once() -> None:
    """`%2525` was written `%25` by somebody."""
    assert plain_name("a%2fb%5Cc%25 100%") == "a/b\\c% 100%"
    assert plain_name("%2525") == "%25"
