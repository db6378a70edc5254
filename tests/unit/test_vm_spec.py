"""From a captured configuration to the spec of a new VM: what is kept, left out, and told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyVmomi import vim

from vmware.captured_part import DocumentError
from vmware.captured_vm import CapturedVm
from vmware.config_capture import plain_json
from vmware.hardware_versions import hardware_of_host
from vmware.kept_settings import kept_settings
from vmware.network_choice import ChosenNetwork, NetworkChoiceError, choose_networks
from vmware.networks import NetworkInfo
from vmware.vm_spec import PlannedVm, SpecChoices, UuidPolicy, first_spec, last_spec
from vmware.vm_spec_devices import CannotRebuildError, MacPolicy, disk_address

device = vim.vm.device
SCSI = (
    device.ParaVirtualSCSIController,
    device.VirtualLsiLogicController,
    device.VirtualLsiLogicSASController,
)
NICS = (device.VirtualVmxnet3, device.VirtualE1000, device.VirtualE1000e)


def network(name: str, kind: str = "standard") -> NetworkInfo:
    return NetworkInfo(
        moref=f"network-{name}",
        kind=kind,
        name=name,
        portgroup_key=f"key-{name}" if kind == "distributed" else "",
        switch_name="",
        switch_uuid="switch" if kind == "distributed" else "",
        vlan="",
        opaque_id=f"ls-{name}" if kind == "opaque" else "",
        opaque_type="nsx.LogicalSwitch" if kind == "opaque" else "",
    )


def disk(key: int, controller: int, unit: int, **backing: Any) -> Any:
    values = {"diskMode": "persistent", "thinProvisioned": True, "fileName": "[old] vm/vm.vmdk"}
    return device.VirtualDisk(
        key=key,
        controllerKey=controller,
        unitNumber=unit,
        capacityInKB=1024,
        capacityInBytes=1 << 20,
        deviceInfo=vim.Description(label=f"Hard disk {key - 1999}", summary=""),
        backing=device.VirtualDisk.FlatVer2BackingInfo(
            datastore=vim.Datastore("datastore-9"), uuid=f"6000C29{key}", **(values | backing)
        ),
    )


def nic(key: int, kind: type = device.VirtualVmxnet3, name: str = "LAN") -> Any:
    return kind(
        key=key,
        macAddress=f"00:50:56:00:00:{key - 4000:02x}",
        addressType="assigned",
        deviceInfo=vim.Description(label=f"Network adapter {key - 3999}", summary=""),
        backing=device.VirtualEthernetCard.NetworkBackingInfo(
            deviceName=name, network=vim.Network("network-7")
        ),
        connectable=device.VirtualDevice.ConnectInfo(
            startConnected=True, allowGuestControl=True, connected=True
        ),
    )


def document(devices: Sequence[Any], extra: dict[str, str] | None = None, **config: Any) -> Any:
    values: dict[str, Any] = {"name": "web", "version": "vmx-19", "guestId": "debian12_64Guest"}
    whole = vim.vm.ConfigInfo(
        **(values | config),
        files=vim.vm.FileInfo(vmPathName="[old] web/web.vmx"),
        extraConfig=[vim.option.OptionValue(key=k, value=v) for k, v in (extra or {}).items()],
        hardware=vim.vm.VirtualHardware(
            numCPU=2, numCoresPerSocket=1, memoryMB=512, device=list(devices)
        ),
    )
    return {
        "schema": "vsphere-1",
        "vm": {"name": "web"},
        "config": plain_json(whole),
        "nics": None,
        "files": {"vmx": None, "nvram": None},
        "tags": [],
    }


def planned(captured: CapturedVm, **choices: Any) -> PlannedVm:
    networks = choose_networks(captured.nics, [network("LAN")], {})
    values: dict[str, Any] = {
        "name": "new",
        "home": "[ds]",
        "mark": "mark",
        "instance_uuid": "uuid",
        "hardware_most": 21,
        "disk_keys": frozenset(item.key for item in captured.disks),
        "networks": networks,
        "mac": MacPolicy.KEEP,
        "uuid": UuidPolicy.KEEP,
    }
    return first_spec(captured, SpecChoices(**(values | choices)))


def test_the_name_is_spelled_as_requests_want_it() -> None:
    """Percent signs begin escape sequences there."""
    captured = CapturedVm.parse(document([]))
    assert planned(captured, name="50%/a\\b").spec.name == "50%25%2fa%5cb"


def codes(plan: PlannedVm) -> set[str]:
    return {finding.code for finding in plan.findings}


@st.composite
def vms(draw: st.DrawFn) -> Any:
    """A document with any controllers, disks, adapters, settings and odd devices."""
    devices: list[Any] = [device.VirtualIDEController(key=200 + n, busNumber=n) for n in (0, 1)]
    key = 2000
    for bus in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(SCSI))
        shared = draw(st.sampled_from(["noSharing", "virtualSharing"]))
        devices.append(kind(key=1000 + bus, busNumber=bus, sharedBus=shared))
        for unit in draw(st.sets(st.sampled_from([0, 1, 5, 8, 15]), max_size=3)):
            thin, eager = draw(st.booleans()), draw(st.booleans())
            devices.append(disk(key, 1000 + bus, unit, thinProvisioned=thin, eagerlyScrub=eager))
            key += 1
    if draw(st.booleans()):
        devices.append(device.VirtualAHCIController(key=15000, busNumber=0))
        devices.append(disk(key, 15000, draw(st.integers(0, 29))))
        key += 1
    if draw(st.booleans()):
        devices.append(disk(key, 200, 0))
    cards = draw(st.lists(st.sampled_from(NICS), max_size=4))
    devices += [nic(4000 + number, kind) for number, kind in enumerate(cards)]
    odd = [device.VirtualTPM, device.VirtualPCIPassthrough, device.VirtualSerialPort]
    devices += [kind(key=9000 + n) for n, kind in enumerate(draw(st.sets(st.sampled_from(odd))))]
    keys = st.sampled_from(
        ["ctkEnabled", "scsi0:0.ctkEnabled", "migrate.hostLog", "uuid.location", "vc.uuid",
         "scsi0:0.redo", "nvram", "sched.swap.derivedName", "ethernet0.pciSlotNumber",
         "disk.EnableUUID", "guestinfo.userdata", "my.own.setting", "encryption.bundle"]
    )  # fmt: skip
    extra = draw(st.dictionaries(keys, st.text(min_size=1, max_size=5)))
    return document(
        draw(st.permutations(devices)), extra, firmware=draw(st.sampled_from(["bios", "efi"]))
    )


@settings(max_examples=150, deadline=None)
@given(vms())
def test_every_disk_keeps_its_place_and_nothing_points_at_the_old_host(whole: Any) -> None:
    """For any VM: addresses, sizes and kinds are the same; keys, files and ids are all new."""
    captured = CapturedVm.parse(whole)
    plan = planned(captured)
    added = [change.device for change in plan.spec.deviceChange]
    controllers = {item.key: item for item in added if hasattr(item, "busNumber")}
    disks = [item for item in added if isinstance(item, device.VirtualDisk)]
    assert [item.address for item in plan.disks] == [
        disk_address(captured, item) for item in captured.disks
    ]
    for made, old in zip(disks, captured.disks, strict=True):
        assert (made.capacityInBytes, made.unitNumber) == (old.capacity_bytes, old.unit_number)
        assert made.backing.thinProvisioned == old.thin
        assert not (made.backing.thinProvisioned and made.backing.eagerlyScrub)
        assert made.backing.uuid == old.uuid
        parent = next(item for item in captured.controllers if item.key == old.controller_key)
        if made.controllerKey >= 0:
            assert (parent.kind, made.controllerKey) == (
                "VirtualIDEController",
                200 + parent.bus_number,
            )
        else:
            found = controllers[made.controllerKey]
            assert (type(found).__name__.rpartition(".")[2], found.busNumber) == (
                parent.kind, parent.bus_number
            )  # fmt: skip
    keys = [item.key for item in added]
    assert len(set(keys)) == len(keys) and all(key < 0 for key in keys)
    assert [
        c.fileOperation for c in plan.spec.deviceChange if isinstance(c.device, device.VirtualDisk)
    ] == (["create"] * len(disks))
    text = str(plan.spec)
    for foreign in ("[old]", "datastore-9", "network-7"):
        assert foreign not in text
    assert [item.macAddress for item in added if isinstance(item, device.VirtualEthernetCard)] == [
        item.mac for item in captured.nics
    ]


@settings(max_examples=100, deadline=None)
@given(vms())
def test_no_record_of_the_old_host_gets_into_the_settings(whole: Any) -> None:
    """Whatever else was set: tracking, redo logs, migration, locations, encryption stay behind."""
    plan = planned(CapturedVm.parse(whole))
    kept = {option.key for option in plan.spec.extraConfig}
    forbidden = re.compile(r"ctk|redo|migrate|uuid\.|vc\.|nvram|swap|encrypt", re.IGNORECASE)
    assert not [key for key in kept if forbidden.search(key) and key != "disk.EnableUUID"]
    assert "my.own.setting" not in kept


@settings(max_examples=60, deadline=None)
@given(vms())
def test_what_cannot_be_made_again_is_told(whole: Any) -> None:
    """A TPM, a passthrough device, a serial port, a shared bus: each with its own reason."""
    captured = CapturedVm.parse(whole)
    told = codes(planned(captured))
    kinds = {item.kind for item in captured.other_devices}
    assert ("VirtualTPM" in kinds) == ("rebuild.tpm" in told)
    assert ("VirtualPCIPassthrough" in kinds) == ("rebuild.passthrough" in told)
    shared = any(item.shared_bus == "virtualSharing" for item in captured.controllers)
    assert shared == ("rebuild.shared-bus" in told)


def simple(**config: Any) -> CapturedVm:
    devices = [
        device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing"),
        disk(2000, 1000, 0),
        disk(2001, 1000, 1),
        nic(4000),
    ]
    return CapturedVm.parse(document(devices, **config))


def test_a_copy_gets_uuids_and_addresses_of_its_own() -> None:
    """So that two of one kind never meet on a network or in a guest's multipath."""
    captured = simple(uuid="bios-uuid", instanceUuid="instance")
    copy = planned(captured, mac=MacPolicy.NEW, uuid=UuidPolicy.NEW)
    assert copy.spec.uuid is None and copy.spec.instanceUuid == "uuid"
    added = [change.device for change in copy.spec.deviceChange]
    assert {item.backing.uuid for item in added if isinstance(item, device.VirtualDisk)} == {None}
    (card,) = [item for item in added if isinstance(item, device.VirtualEthernetCard)]
    assert (card.macAddress, card.addressType) == (None, "generated")
    same = planned(captured)
    assert same.spec.uuid == "bios-uuid"
    assert same.spec.instanceUuid == "uuid", "the mark is bound to it until the VM is finished"
    assert last_spec(captured, choices(captured), [], None).instanceUuid == "instance"


def choices(captured: CapturedVm) -> SpecChoices:
    return SpecChoices(
        name="new",
        home="[ds]",
        mark="mark",
        instance_uuid="uuid",
        hardware_most=21,
        disk_keys=frozenset(),
        networks={},
        mac=MacPolicy.KEEP,
        uuid=UuidPolicy.KEEP,
    )


def test_hardware_is_what_the_place_offers_at_most() -> None:
    """A newer VM becomes an older one, and that is told."""
    newer = simple(version="vmx-21")
    assert planned(newer, hardware_most=21).spec.version == "vmx-21"
    lowered = planned(newer, hardware_most=19)
    assert lowered.spec.version == "vmx-19"
    assert "rebuild.older-hardware" in codes(lowered)
    assert planned(simple(version="vmx-08")).spec.version == "vmx-08"


@pytest.mark.parametrize(
    ("host", "version"),
    [
        ("8.0.3", 21),
        ("8.0.1", 20),
        ("7.0.3", 19),
        ("7.0.0", 17),
        ("6.7.0", 14),
        ("10.1", 22),
        ("", 10),
    ],
)
def test_a_host_runs_the_hardware_of_its_version(host: str, version: int) -> None:
    """As the vendor's table has it; of an unknown one the oldest."""
    assert hardware_of_host(host) == version


def test_disks_that_are_not_in_the_point_are_left_out_and_told() -> None:
    """The others keep their places."""
    plan = planned(simple(), disk_keys=frozenset({2001}))
    assert [item.address for item in plan.disks] == ["scsi0:1"]
    assert "rebuild.disk-left-out" in codes(plan)


def test_a_disk_without_a_controller_cannot_be_rebuilt() -> None:
    """It is an error, not a VM without its disk."""
    captured = CapturedVm.parse(document([disk(2000, 1000, 0)]))
    with pytest.raises(CannotRebuildError):
        planned(captured)


def test_firmware_secure_boot_and_boot_order_come_back() -> None:
    """The order in the new VM's own keys; a device that is not there is passed over."""
    options = vim.vm.BootOptions
    captured = simple(
        firmware="efi",
        bootOptions=options(
            efiSecureBootEnabled=True,
            bootDelay=3,
            bootOrder=[
                options.BootableEthernetDevice(deviceKey=4000),
                options.BootableDiskDevice(deviceKey=2001),
                options.BootableDiskDevice(deviceKey=2099),
                options.BootableCdromDevice(),
            ],
        ),
    )
    plan = planned(captured)
    assert (plan.spec.firmware, plan.spec.bootOptions.efiSecureBootEnabled) == ("efi", True)
    assert "rebuild.no-nvram" in codes(plan)
    made = [
        device.ParaVirtualSCSIController(key=1003, busNumber=0),
        disk(2016, 1003, 0),
        disk(2017, 1003, 1),
        nic(4007),
    ]
    last = last_spec(captured, choices(captured), made, "new.nvram")
    assert [getattr(item, "deviceKey", None) for item in last.bootOptions.bootOrder] == [
        4007, 2017, None
    ]  # fmt: skip
    assert [(o.key, o.value) for o in last.extraConfig] == [("nvram", "new.nvram")]


def test_settings_of_adapters_go_along_only_with_the_same_adapters() -> None:
    """They are numbered, so one adapter less would give them to the wrong one."""
    settings = [("ethernet0.pciSlotNumber", "192"), ("svga.vramSize", "8388608")]
    assert dict(kept_settings(settings, same_nics=True).kept) == dict(settings)
    fewer = kept_settings(settings, same_nics=False)
    assert dict(fewer.kept) == {"svga.vramSize": "8388608"}
    assert fewer.left == ("ethernet0.pciSlotNumber",)


NETWORKS = [network("LAN"), network("DMZ", "distributed"), network("NSX", "opaque")]


def test_networks_are_chosen_by_name_label_or_address() -> None:
    """Mapped ones where they are mapped to, all others to their namesake."""
    nics = simple().nics
    assert choose_networks(nics, NETWORKS, {})[4000].network.name == "LAN"
    for old in ("LAN", "Network adapter 1", "00:50:56:00:00:00"):
        assert choose_networks(nics, NETWORKS, {old: "DMZ"})[4000].network.name == "DMZ"
    loose = choose_networks(nics, NETWORKS, {}, frozenset({"LAN"}))[4000]
    assert loose == ChosenNetwork(network=NETWORKS[0], start_connected=False)


def test_each_kind_of_network_has_its_own_backing() -> None:
    """By name, by port group and switch, by opaque id."""
    captured = simple()
    for index, kind in enumerate(["deviceName", "port", "opaqueNetworkId"]):
        networks = {4000: ChosenNetwork(network=NETWORKS[index], start_connected=True)}
        plan = planned(captured, networks=networks)
        (card,) = [
            change.device
            for change in plan.spec.deviceChange
            if isinstance(change.device, device.VirtualEthernetCard)
        ]
        assert getattr(card.backing, kind)


@pytest.mark.parametrize(
    ("offered", "mapping", "message"),
    [
        ([], {}, "no network 'LAN'"),
        (NETWORKS, {"LAN": "gone"}, "no network 'gone'"),
        (NETWORKS, {"other": "LAN"}, "no network 'other'"),
        ([network("LAN", "opaque"), network("LAN", "distributed")], {}, "2 networks"),
    ],
)
def test_a_network_that_is_not_there_is_an_error(
    offered: list[NetworkInfo], mapping: dict[str, str], message: str
) -> None:
    """Never another network by chance."""
    with pytest.raises(NetworkChoiceError, match=message):
        choose_networks(simple().nics, offered, mapping)


@pytest.mark.parametrize(
    "damage",
    [
        {"schema": "vsphere-9"},
        {"config": "text"},
        {"config": {"hardware": {"device": "many"}}},
        {"config": {"hardware": {"numCPU": "two"}}},
        {"config": {"hardware": {"numCPU": True}}},
        {"files": {"nvram": {"base64": "%%%"}}},
        {"nics": [{"key": 1.5}], "config": {}},
    ],
)
def test_a_document_of_another_form_is_an_error(damage: dict[str, Any]) -> None:
    """Typed, never a guess: points live longer than versions."""
    with pytest.raises(DocumentError):
        CapturedVm.parse(document([]) | damage)


def test_what_an_old_server_did_not_capture_has_defaults() -> None:
    """The least there is still makes a VM."""
    captured = CapturedVm.parse({"schema": "vsphere-1", "config": {}})
    plan = planned(captured)
    assert plan.spec.version == "vmx-21" and plan.disks == ()
