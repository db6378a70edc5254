"""Rules of the lab's machines that need no QEMU: .vmx files, keys, consolidation plans, devices."""

from __future__ import annotations

import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from lab.esx.datastore_path import DatastorePath
from lab.esx.device_tree import AttachedDisk, DeviceTree, swapped_uuid
from lab.esx.errors import HostError
from lab.esx.hardware import Controller, ControllerKind, Disk, DiskMode, Nic, VmConfig
from lab.esx.snapshot_plan import Delete, Merge, plan_consolidation
from lab.esx.vm_library import new_config
from lab.esx.vmx import InvalidVmxError, config_of, format_vmx, parse_vmx, settings_of

VMX = DatastorePath.parse("[ds] vm/vm.vmx")
SIZE = 8 << 20


def path(name: str) -> DatastorePath:
    return VMX.sibling(name)


def sized(_path: DatastorePath) -> tuple[int, str, bool]:
    return SIZE, "6000c290-0000-0000-0000-000000000001", True


def machine() -> VmConfig:
    ide = [Controller(kind=ControllerKind.IDE, bus_number=number) for number in range(2)]
    scsi = Controller(kind=ControllerKind.LSI_SAS, bus_number=1, shared_bus="virtualSharing")
    nvme = Controller(kind=ControllerKind.NVME, bus_number=0)
    disks = [
        Disk(
            key=controller.disk_key(unit),
            controller_key=controller.key,
            unit=unit,
            path=place,
            capacity_bytes=SIZE,
            label=f"Hard disk {number}",
            mode=mode,
            uuid=sized(place)[1],
        )
        for number, (controller, unit, place, mode) in enumerate(
            [
                (scsi, 8, path("a.vmdk"), DiskMode.PERSISTENT),
                (nvme, 0, DatastorePath.parse("[other] x/b.vmdk"), DiskMode.INDEPENDENT_PERSISTENT),
            ],
            start=1,
        )
    ]
    nic = Nic(
        key=4000,
        kind="vmxnet3",
        network="VM Network",
        mac="00:50:56:00:00:01",
        label="Network adapter 1",
        address_type="manual",
        switch_uuid="50 01",
        portgroup_key="dvportgroup-1",
    )
    return replace(
        new_config('a "quoted" | name', VMX),
        annotation="two\nlines # and more",
        firmware="efi",
        secure_boot=True,
        change_tracking=True,
        controllers=(*ide, scsi, nvme),
        disks=tuple(disks),
        nics=(nic,),
        extra={"guestinfo.x": "y", "nvram": "vm.nvram"},
    )


def test_a_machine_survives_its_vmx() -> None:
    """Whatever its configuration says comes back, and foreign settings stay."""
    config = machine()
    assert config_of(parse_vmx(format_vmx(settings_of(config))), VMX, sized) == config


@pytest.mark.parametrize(
    "broken",
    [
        "nonsense",
        'virtualHW.version = "19"',
        'config.version = "8"',
        'config.version = "8"\nvirtualHW.version = "new"',
        'config.version = "8"\nvirtualHW.version = "19"\nmemSize = "-1"',
        'config.version = "8"\nvirtualHW.version = "19"\nuuid.bios = "xx"',
        'config.version = "8"\nvirtualHW.version = "19"\nscsi0.present = "TRUE"\n'
        'scsi0.virtualDev = "quantum"',
        'config.version = "8"\nvirtualHW.version = "19"\nethernet0.present = "TRUE"\n'
        'ethernet0.virtualDev = "token-ring"',
    ],
)
def test_a_vmx_that_is_none_is_refused(broken: str) -> None:
    """With InvalidVmConfig."""
    with pytest.raises(InvalidVmxError):
        config_of(parse_vmx(broken), VMX, sized)


def test_a_vmx_cannot_name_files_outside_of_its_datastore() -> None:
    """A path with dot parts in a .vmx is refused as any other."""
    text = (
        'config.version = "8"\nvirtualHW.version = "19"\nscsi0.present = "TRUE"\n'
        'scsi0:0.present = "TRUE"\nscsi0:0.fileName = "../../etc/passwd"\n'
    )
    with pytest.raises(HostError):
        config_of(parse_vmx(text), VMX, sized)


def test_device_keys_are_those_of_vmware() -> None:
    """Disks of bus n start at 2000 + 16 n; unit 7 is the controller."""
    second = Controller(kind=ControllerKind.PVSCSI, bus_number=1)
    assert (second.key, second.disk_key(0), second.disk_key(15)) == (1001, 2016, 2031)
    assert [second.has_unit(unit) for unit in (6, 7, 8, 64, 65, -1)] == [
        *(True, False, True, True, False, False)
    ]
    lsi = Controller(kind=ControllerKind.LSI_LOGIC, bus_number=0)
    assert not lsi.has_unit(16)
    assert Controller(kind=ControllerKind.IDE, bus_number=1).disk_key(1) == 3003
    keys = {second.disk_key(unit) for unit in range(65)}
    assert len(keys) == 65


def test_a_file_nobody_names_takes_its_only_childs_data() -> None:
    """In the middle, and at the end of a branch."""
    base, one, two = path("vm.vmdk"), path("vm-1.vmdk"), path("vm-2.vmdk")
    chain = {base: None, one: base, two: one}
    assert plan_consolidation(chain, {base, one, two}) == []
    assert plan_consolidation(chain, {base, two}) == [Merge(child=two, into=one)]
    assert plan_consolidation(chain, {two}) == [
        Merge(child=two, into=one),
        Merge(child=one, into=base),
    ]


def test_a_parent_of_two_branches_stays() -> None:
    """Both read through it; a branch that ends in nothing goes."""
    base, one, two = path("vm.vmdk"), path("vm-1.vmdk"), path("vm-2.vmdk")
    fork = {base: None, one: base, two: base}
    assert plan_consolidation(fork, {one, two}) == []
    assert plan_consolidation(fork, {two}) == [Delete(path=one), Merge(child=two, into=base)]
    assert plan_consolidation({base: None}, set()) == []


def wait_gone(place: Path) -> None:
    while place.exists():
        os.sched_yield()


@pytest.mark.timeout(30)
def test_a_device_appears_with_its_identity_and_leaves_when_deleted(tmp_path: Path) -> None:
    """Until a rescan finds it again, or it is really taken away."""
    bios, disk_uuid = str(uuid.uuid4()), "6000c291-2345-6789-abcd-ef0123456789"
    node = tmp_path / "node"
    node.touch()
    tree = DeviceTree(tmp_path / "root", bios)
    try:
        tree.add_controller(Controller(kind=ControllerKind.PVSCSI, bus_number=1))
        tree.attach(AttachedDisk(bus=1, unit=3, size_bytes=SIZE, uuid=disk_uuid, node=node))
        sys, dev = tmp_path / "root" / "sys", tmp_path / "root" / "dev"
        assert (sys / "class/dmi/id/product_uuid").read_text().strip() == swapped_uuid(bios)
        assert swapped_uuid(swapped_uuid(bios)).lower() == bios
        assert (sys / "block/sdb/size").read_text() == f"{SIZE // 512}\n"
        device = sys / "class/scsi_device/3:0:3:0/device"
        assert [one.name for one in (device / "block").iterdir()] == ["sdb"]
        plain = disk_uuid.replace("-", "")
        assert (device / "wwid").read_text() == f"naa.{plain}\n"
        assert (dev / f"disk/by-id/wwn-0x{plain}").readlink().name == "sdb"
        assert (dev / "sdb").resolve() == node
        address = (sys / "bus/pci/slots/161/address").read_text().strip()
        assert f"{address}.0" in (sys / "class/scsi_host/host3").resolve().parts
        (sys / "block/sdb/device/delete").write_text("1\n")
        wait_gone(sys / "block/sdb")
        assert not (dev / "sdb").exists() and not list((dev / "disk/by-id").iterdir())
        (sys / "class/scsi_host/host3/scan").write_text("- - -\n")
        while not (dev / f"disk/by-id/scsi-3{plain}").exists():
            os.sched_yield()
        tree.detach(1, 3)
        assert not (sys / "block/sdb").exists()
    finally:
        tree.close()
    assert not (tmp_path / "root").exists()
