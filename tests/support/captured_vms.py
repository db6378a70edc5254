"""VMs as they were captured, of both hypervisors, to translate: one plain VM each, to be varied."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from appliance.targets.contract import WantedDisk
from hyperv import captured_vm as hv
from hyperv.config_capture import Capture
from hyperv.config_capture import CapturedDisk as HypervDisk
from vmware.captured_vm import (
    CapturedController,
    CapturedDisk,
    CapturedNic,
    CapturedPlacement,
    CapturedVm,
)
from vmware.vm_spec_devices import disk_address

GIB = 1 << 30

_VSPHERE = CapturedVm(
    name="web",
    hardware_version=19,
    guest_id="debian12_64Guest",
    alternate_guest_name="",
    annotation="owner: web team",
    instance_uuid="500c2f3a-0000-4000-8000-000000000001",
    bios_uuid="420c2f3a-0000-4000-8000-000000000002",
    firmware="bios",
    secure_boot=False,
    boot_delay_ms=0,
    enter_setup=False,
    boot_retry=False,
    boot_order=(),
    cpus=2,
    cores_per_socket=1,
    memory_mib=2048,
    cpu_hot_add=False,
    cpu_hot_remove=False,
    memory_hot_add=False,
    nested_virtualisation=False,
    cpu_share=None,
    memory_share=None,
    latency_sensitivity="",
    swap_placement="",
    disk_uuid_enabled=None,
    virtualisation_security=None,
    io_mmu=None,
    controllers=(),
    disks=(),
    nics=(),
    other_devices=(),
    settings=(),
    encrypted=False,
    template=False,
    vapp=False,
    managed_by="",
    nvram=None,
    tags=(),
    attributes=(),
    placement=CapturedPlacement(
        folder_path="",
        datacenter_path="",
        resource_pool_path="",
        host="",
        cluster="",
        datastore="",
    ),
)


def vsphere_vm(**changes: Any) -> CapturedVm:
    return replace(_VSPHERE, **changes)


def controller(kind: str, key: int, bus: int = 0) -> CapturedController:
    return CapturedController(key=key, kind=kind, bus_number=bus, shared_bus="noSharing")


def vsphere_disk(key: int, controller_key: int, unit: int, size_bytes: int = GIB) -> CapturedDisk:
    return CapturedDisk(
        key=key,
        label=f"Hard disk {key}",
        controller_key=controller_key,
        unit_number=unit,
        capacity_bytes=size_bytes,
        backing="VirtualDisk.FlatVer2BackingInfo",
        datastore="ds1",
        thin=True,
        eagerly_zeroed=False,
        uuid="",
        encrypted=False,
    )


def vsphere_nic(number: int, kind: str = "VirtualVmxnet3", network: str = "LAN") -> CapturedNic:
    return CapturedNic(
        key=4000 + number,
        label=f"Network adapter {number + 1}",
        kind=kind,
        mac=f"00:50:56:00:00:{number:02x}",
        address_type="assigned",
        start_connected=True,
        network_name=network,
        network_kind="standard",
    )


def wanted_of_vsphere(vm: CapturedVm) -> tuple[WantedDisk, ...]:
    return tuple(
        _wanted(number, disk_address(vm, disk), disk.capacity_bytes)
        for number, disk in enumerate(vm.disks)
    )


def hyperv_vm(generation: int = 1, **changes: Any) -> hv.CapturedVm:
    firmware = hv.Firmware(
        secure_boot=False,
        secure_boot_template="",
        secure_boot_template_id="",
        console_mode=0,
        pause_after_boot_failure=False,
        boot_order=[],
    )
    memory = hv.Memory(
        startup_bytes=2 * GIB,
        minimum_bytes=2 * GIB,
        maximum_bytes=2 * GIB,
        dynamic=False,
        buffer=20,
        weight=50,
    )
    processor = hv.Processor(
        count=2, reserve=0, limit=100, weight=100, nested=False, compatibility=False
    )
    identity = hv.Identity(
        bios_guid="{420C2F3A-0000-4000-8000-000000000002}",
        bios_serial="1234",
        board_serial="1234",
        chassis_serial="1234",
        chassis_asset_tag="1234",
    )
    values: dict[str, Any] = {
        "id": "0f0e0d0c-0b0a-4908-8706-050403020100",
        "name": "mail",
        "notes": "owner: mail team",
        "generation": generation,
        "version": "9.0",
        "identity": identity,
        "processor": processor,
        "memory": memory,
        "firmware": firmware if generation == 2 else None,
        "bios": hv.Bios(startup_order=[1, 2, 3, 0], num_lock=False) if generation == 1 else None,
        "security": hv.Security(tpm=False, shielded=False, encrypt_state=False),
        "checkpoint_type": 3,
        "automatic_checkpoints": False,
        "start_action": 3,
        "start_delay_s": 0,
        "stop_action": 3,
        "critical_error_action": 1,
        "clustered": False,
        "adapters": [hyperv_adapter(0)],
        "controllers": [],
        "dvds": [],
        "integration": [],
    }
    return hv.CapturedVm(**(values | changes))


def hyperv_adapter(number: int, **changes: Any) -> hv.Adapter:
    values: dict[str, Any] = {
        "id": f"Microsoft:{number}",
        "name": "Network Adapter",
        "legacy": False,
        "mac": f"00155D0000{number:02X}",
        "dynamic_mac": True,
        "switch_name": "Production",
        "switch_id": "",
        "connected": True,
        "vlan_mode": 0,
        "vlan_id": 0,
        "mac_spoofing": False,
        "dhcp_guard": False,
        "router_guard": False,
        "device_naming": False,
        "addresses": [],
    }
    return hv.Adapter(**(values | changes))


def hyperv_capture(
    vm: hv.CapturedVm, *places: tuple[str, int, int], size_bytes: int = GIB, sector_bytes: int = 512
) -> Capture:
    """With a disk at each place, numbered in this order."""
    return Capture(
        host="HV1",
        os_version="10.0.20348",
        vm=vm,
        disks=[
            HypervDisk(
                number=number,
                controller=kind,
                controller_number=controller_number,
                location=location,
                path=f"D:\\{number}.vhdx",
                format="vhdx",
                type="dynamic",
                virtual_disk_id=f"id-{number}",
                size_bytes=size_bytes,
                logical_sector_bytes=sector_bytes,
                physical_sector_bytes=4096,
                attachment=attachment(kind, controller_number, location),
            )
            for number, (kind, controller_number, location) in enumerate(places)
        ],
    )


def attachment(kind: str, controller_number: int, location: int) -> str:
    return f"Microsoft:VM\\{kind}-{controller_number}\\0\\{location}\\D"


def wanted_of_hyperv(capture: Capture) -> tuple[WantedDisk, ...]:
    return tuple(
        _wanted(
            disk.number,
            f"{disk.controller}{disk.controller_number}:{disk.location}",
            disk.size_bytes,
        )
        for disk in capture.disks
    )


def _wanted(number: int, place: str, size_bytes: int) -> WantedDisk:
    return WantedDisk(
        number=number, label=f"disk {number}", place=place, size_bytes=size_bytes, data_bytes=0
    )
