"""The .vmx that instant recovery writes: what stands in it, and what can never get into it."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.esx.datastore_path import DatastorePath
from lab.esx.vmdk import parse_descriptor as lab_descriptor
from lab.esx.vmx import config_of, parse_vmx
from vmware.captured_vm import CapturedVm
from vmware.network_choice import ChosenNetwork
from vmware.networks import NetworkInfo
from vmware.vm_spec_devices import MacPolicy, disk_address
from vmware.vmdk_descriptor import VmdkError, flat_descriptor, format_descriptor, parse_descriptor
from vmware.vmx import VmxChoices, VmxError, build_vmx, guest_name, quoted

UUID = "4210c2f6-0000-4111-8222-0123456789ab"
MARK = ("holdfast.session", "0a1b2c3d")
LINE = re.compile(r'[A-Za-z0-9_.:-]+ = "[^"\n\r]*"')


def document(**config: Any) -> dict[str, Any]:
    devices = [
        {
            "_vimtype": "vim.vm.device.ParaVirtualSCSIController",
            "key": 1000,
            "busNumber": 0,
            "sharedBus": "noSharing",
        },
        {
            "_vimtype": "vim.vm.device.VirtualDisk",
            "key": 2001,
            "controllerKey": 1000,
            "unitNumber": 1,
            "capacityInBytes": 1 << 30,
            "deviceInfo": {"label": "Hard disk 1"},
            "backing": {
                "_vimtype": "vim.vm.device.VirtualDisk.FlatVer2BackingInfo",
                "fileName": "[ds] web/web.vmdk",
                "uuid": "6000C29a-0000-4111-8222-0123456789ab",
            },
        },
        {
            "_vimtype": "vim.vm.device.VirtualVmxnet3",
            "key": 4000,
            "macAddress": "00:50:56:01:02:03",
            "addressType": "assigned",
            "deviceInfo": {"label": "Network adapter 1"},
        },
        {
            "_vimtype": "vim.vm.device.VirtualCdrom",
            "key": 3000,
            "controllerKey": 200,
            "unitNumber": 0,
            "backing": {
                "_vimtype": "vim.vm.device.VirtualCdrom.IsoBackingInfo",
                "fileName": "[iso] install.iso",
            },
        },
    ]
    return {
        "schema": "vsphere-1",
        "vm": {"name": "web"},
        "config": {
            "name": "web",
            "version": "vmx-19",
            "guestId": "debian12_64Guest",
            "uuid": UUID,
            "instanceUuid": UUID,
            "firmware": "bios",
            "files": {"vmPathName": "[ds] web/web.vmx"},
            "hardware": {
                "numCPU": 2,
                "numCoresPerSocket": 2,
                "memoryMB": 512,
                "device": devices,
            },
            "flags": {"diskUuidEnabled": True},
            **config,
        },
        "files": {"nvram": {"base64": base64.b64encode(b"MRVN").decode()}},
    }


def network(kind: str = "standard") -> ChosenNetwork:
    info = NetworkInfo(
        moref="network-1",
        kind=kind,
        name="Storage | net",
        portgroup_key="",
        switch_name="",
        switch_uuid="",
        vlan="",
        opaque_id="",
        opaque_type="",
    )
    return ChosenNetwork(network=info, start_connected=True)


def choices(**changes: Any) -> VmxChoices:
    plain = VmxChoices(
        name="web again",
        nvram_file="web.nvram",
        disk_files={2001: "disk-0.vmdk"},
        networks={4000: network()},
        hardware_most=21,
        bios_uuid=UUID,
        instance_uuid=UUID,
        mac=MacPolicy.KEEP,
        mark=MARK,
    )
    return replace(plain, **changes)


def text(vm: CapturedVm | None = None, **changes: Any) -> str:
    vm = vm or CapturedVm.parse(document())
    return build_vmx(vm, choices(**changes)).decode()


def test_a_host_reads_the_machine_that_was_captured() -> None:
    """Processors, memory, controllers, disk, adapter and identity, by the lab's own parser."""
    path = DatastorePath.parse("[holdfast-1] web/web.vmx")
    config = config_of(parse_vmx(text()), path, lambda _: (1 << 30, UUID, True))
    assert (config.name, config.version, config.cpus, config.memory_mib) == (
        "web again",
        19,
        2,
        512,
    )
    (disk,) = config.disks
    assert (disk.path, disk.unit) == (path.sibling("disk-0.vmdk"), 1)
    (nic,) = config.nics
    assert (nic.kind, nic.mac, nic.start_connected) == ("vmxnet3", "00:50:56:01:02:03", False)
    assert nic.network == "Storage | net"
    assert (config.uuid, config.disk_uuid_enabled) == (UUID, True)
    assert config.extra["holdfast.session"] == "0a1b2c3d"


def test_the_first_line_says_the_encoding_and_no_foreign_file_is_named() -> None:
    """Files of the original, its media, its tracking and its places stay behind."""
    settings = [
        {"key": "uuid.location", "value": "56 4d"},
        {"key": "ctkEnabled", "value": "TRUE"},
        {"key": "scsi0:1.ctkEnabled", "value": "TRUE"},
        {"key": "sched.swap.derivedName", "value": "/vmfs/volumes/x/web.vswp"},
        {"key": "nvram", "value": "/vmfs/volumes/x/other.nvram"},
        {"key": "migrate.hostLog", "value": "x"},
        {"key": "scsi0:1.redo", "value": "x"},
        {"key": "ethernet0.pciSlotNumber", "value": "160"},
    ]
    written = text(CapturedVm.parse(document(extraConfig=settings)))
    assert written.splitlines()[0] == '.encoding = "UTF-8"'
    assert "/vmfs" not in written and "[iso]" not in written and "ctk" not in written
    assert "uuid.location" not in written and "redo" not in written
    assert 'ethernet0.pciSlotNumber = "160"' in written
    assert 'nvram = "web.nvram"' in written


def test_another_vm_gets_another_address_and_no_uuid_of_vcenter() -> None:
    """A copy beside its original never appears under the same MAC address."""
    written = text(mac=MacPolicy.NEW, instance_uuid=None)
    assert 'ethernet0.addressType = "generated"' in written
    assert "00:50:56:01:02:03" not in written and "vc.uuid" not in written


def test_an_adapter_of_a_distributed_switch_is_named_only_when_it_is_connected() -> None:
    """Its ids mean nothing in a file."""
    assert "networkName" not in text(networks={4000: network("distributed")})


@given(st.text(max_size=40), st.text(max_size=40))
def test_nothing_from_a_guest_becomes_another_line(name: str, value: str) -> None:
    """Every line is one setting of ours, and reads back as what was written; or it is refused."""
    settings = [{"key": "guestinfo.metadata", "value": value}]
    vm = CapturedVm.parse(document(extraConfig=settings, annotation=value))
    try:
        written = text(vm, name=name)
    except VmxError:
        assert any(ord(each) < 32 or ord(each) >= 127 for each in name)
        return
    lines = written.split("\n")
    assert lines.pop() == ""
    assert all(LINE.fullmatch(line) for line in lines)
    assert len({line.split(" = ")[0] for line in lines}) == len(lines)
    assert parse_vmx(written)["displayName"] == name


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "a\x85b", "a\u2028b", "\ud800"])
def test_a_value_with_a_line_end_is_refused(value: str) -> None:
    """However a reader of the file takes lines apart."""
    with pytest.raises(VmxError):
        quoted(value)


def test_names_of_files_are_ours_alone() -> None:
    """A path or a quote in one is a mistake of ours, and never written."""
    for name in ("../x.vmdk", "/vmfs/volumes/x.vmdk", 'a".vmdk', ""):
        with pytest.raises(VmxError):
            text(disk_files={2001: name})


@pytest.mark.parametrize(
    ("api", "vmx"),
    [
        ("debian12_64Guest", "debian12-64"),
        ("windows2019srv_64Guest", "windows2019srv-64"),
        ("centos64Guest", "centos-64"),
        ("otherLinux64Guest", "otherlinux-64"),
        ("otherGuest64", "other-64"),
        ('evil"\nGuest', "other-64"),
    ],
)
def test_guest_systems_are_spelled_as_in_a_vmx(api: str, vmx: str) -> None:
    """The API and the file name them differently."""
    assert guest_name(api) == vmx


def test_a_descriptor_of_a_flat_disk_is_whole_and_names_no_tracking() -> None:
    """It parses here and in the lab; the identity is the wanted one."""
    made = flat_descriptor(
        flat_file="disk-0-flat.vmdk",
        size_bytes=1 << 30,
        uuid="6000C29a-0000-4111-8222-0123456789ab",
        content_id=0x1234ABCD,
        hardware_version=19,
    )
    raw = format_descriptor(made)
    assert parse_descriptor(raw) == made
    assert b"changeTrackPath" not in raw and b"version=1\n" in raw
    lab = lab_descriptor(raw.decode(), "disk-0.vmdk")
    assert (lab.capacity_bytes, lab.extent_name) == (1 << 30, "disk-0-flat.vmdk")
    assert lab.uuid.replace("-", "").lower().startswith("6000c29a")


@pytest.mark.parametrize(("size", "uuid"), [(513, "0" * 32), (0, "0" * 32), (512, "x")])
def test_a_descriptor_of_nonsense_is_refused(size: int, uuid: str) -> None:
    """A host would refuse it later, with less to say."""
    with pytest.raises(VmdkError):
        flat_descriptor(
            flat_file="f", size_bytes=size, uuid=uuid, content_id=1, hardware_version=19
        )


def test_a_bios_starts_from_the_disk_that_was_first() -> None:
    """Devices in their order; of a disk that is not there nothing is said, nor to EFI."""
    order = [
        {"_vimtype": "vim.vm.BootOptions.BootableEthernetDevice", "deviceKey": 4000},
        {"_vimtype": "vim.vm.BootOptions.BootableDiskDevice", "deviceKey": 2001},
        {"_vimtype": "vim.vm.BootOptions.BootableCdromDevice"},
        {"_vimtype": "vim.vm.BootOptions.BootableDiskDevice", "deviceKey": 2999},
    ]
    captured = CapturedVm.parse(document(bootOptions={"bootOrder": order}))
    settings = parse_vmx(text(captured))
    assert settings["bios.bootOrder"] == "ethernet0,hdd,cdrom"
    assert settings["bios.hddOrder"] == disk_address(captured, captured.disks[0])
    assert "bios.hddOrder" not in text(replace(captured, firmware="efi"))
    assert "bios.hddOrder" not in text(replace(captured, boot_order=captured.boot_order[3:]))
