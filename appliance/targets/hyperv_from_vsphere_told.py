"""What does not come along when a VM of vSphere becomes one of Hyper-V. Pure; see `translation`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.base.reasons import Reason
from appliance.base.units import GIB, MIB
from appliance.targets.translation import (
    ALLOCATIONS,
    BOOT_ENTRIES,
    IDENTITY,
    adapters_left_out,
    cut_down,
    drivers_unchanged,
    guest_software,
    listed,
    other_adapters,
    secure_boot,
)
from hyperv import captured_vm as hv
from vmware.captured_vm import CapturedShare, CapturedVm
from vmware.vm_spec_devices import left_out_devices

TPM = "VirtualTPM"  # becomes a new one


def told(captured: CapturedVm, vm: hv.CapturedVm) -> Iterator[Reason]:
    """`vm`: what `captured` became."""
    generation = vm.generation
    yield drivers_unchanged(
        f"Hyper-V's {'IDE, then SCSI' if generation == 1 else 'SCSI'}",
        "Linux needs hv_vmbus and hv_storvsc (generation 1 also ata_piix) in its initramfs, "
        "Windows vmbus and storvsc (intelide, atapi) started at boot",
    )
    yield _SOFTWARE
    yield IDENTITY
    if vm.adapters:
        yield other_adapters(f"Hyper-V's {'legacy' if vm.adapters[0].legacy else 'synthetic'} ones")
    left = captured.nics[len(vm.adapters) :]
    if left:
        yield adapters_left_out(nic.label for nic in left)
    if generation == 2:
        yield BOOT_ENTRIES
        if captured.secure_boot and vm.firmware is not None:
            yield secure_boot(
                f"secure boot trusts what Hyper-V's template {vm.firmware.secure_boot_template} "
                "names, and nothing else",
                "if the guest does not boot, choose another template, or turn secure boot off",
            )
        if captured.guest_id and "64" not in captured.guest_id:
            yield _NARROW
    cut = list(_cut(captured, vm))
    if cut:
        yield cut_down(cut)
    devices = [device.label for device in left_out_devices(captured) if device.kind != TPM]
    if devices:
        yield _devices(devices)
    special = list(_special_disks(captured))
    if special:
        yield _disk_features(special)
    if captured.vapp or any(key.lower().startswith("guestinfo.") for key, _ in captured.settings):
        yield _GUEST_SETTINGS
    if _is_set(captured.cpu_share) or _is_set(captured.memory_share):
        yield ALLOCATIONS


def _cut(captured: CapturedVm, vm: hv.CapturedVm) -> Iterator[str]:
    if captured.cpus > vm.processor.count:
        yield f"{vm.processor.count} processors instead of {captured.cpus}"
    if captured.memory_mib * MIB > vm.memory.startup_bytes:
        had = captured.memory_mib * MIB // GIB
        yield f"{vm.memory.startup_bytes // GIB} GiB of memory instead of {had}"


def _special_disks(captured: CapturedVm) -> Iterator[str]:
    if captured.encrypted or any(disk.encrypted for disk in captured.disks):
        yield "encryption"
    if any("RawDisk" in disk.backing for disk in captured.disks):
        yield "raw device mapping"
    if any(c.shared_bus not in ("", "noSharing") for c in captured.controllers):
        yield "sharing with other VMs"


def _is_set(share: CapturedShare | None) -> bool:
    return share is not None and (
        share.reservation > 0 or share.limit >= 0 or share.level not in ("", "normal")
    )


def _devices(labels: Sequence[str]) -> Reason:
    return Reason(
        "translation.devices-left-out",
        f"devices that have no place in the new VM: {listed(labels)}",
        "add on the host what the guest needs (passthrough: Discrete Device Assignment)",
    )


def _disk_features(features: Sequence[str]) -> Reason:
    return Reason(
        "translation.disk-features",
        f"the VM's disks become ordinary VHDX files, without {listed(features)}",
        "set up on the host what the guest needs of it",
    )


_SOFTWARE = guest_software(
    "VMware Tools in the guest do nothing on Hyper-V, and its integration services may be missing",
    "remove VMware Tools; Windows brings the services, Linux needs hyperv-daemons or "
    "linux-cloud-tools for addresses and application-consistent backups",
)
_GUEST_SETTINGS = Reason(
    "translation.guest-settings",
    "vApp options and guestinfo settings, which a guest could read on vSphere, are not there",
    "give the guest by other means what it reads from them (cloud-init: a seed disk)",
)
_NARROW = Reason(
    "translation.narrow-guest",
    "the guest is of 32 bits by its name and boots by EFI; generation 2 runs 64-bit guests only",
    "restore it on vSphere if it does not boot",
)
