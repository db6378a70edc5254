"""Capture what a VM is, beside its disks, at the moment of a backup.

Data path: `capture_vm` -> `Capture`, a JSON document with the disks' places -> the recovery point.
The raw configuration files of the checkpoint (`.vmcx`, `.vmrs`, `.vmgs`) are not part of it: only
the same or a newer Windows can read them, and a vTPM in them needs the host's own keys.

Thread model: any thread; blocks. Source: design notes section 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from hyperv.captured_vm import CapturedVm
from hyperv.findings import Finding, Weight
from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer

FORMAT = 1


class CapturedDisk(Answer):
    """Where a disk hung; `number` is the recovery point's own."""

    number: int
    controller: str
    controller_number: int
    location: int
    path: str
    format: str
    type: str
    virtual_disk_id: str
    size_bytes: int
    logical_sector_bytes: int
    physical_sector_bytes: int
    attachment: str = ""  # as the firmware's boot order names it; "": of an older point


class Capture(Answer):
    format: int = FORMAT
    host: str
    os_version: str
    vm: CapturedVm
    disks: list[CapturedDisk] = Field(max_length=260)

    @property
    def boot_disk(self) -> int | None:
        """The number of the disk that the VM boots from; None: there are no disks."""
        first = first_to_boot(self.vm, self.disks)
        if first is None and self.disks:
            first = min(self.disks, key=place_of)
        return first.number if first else None


def capture_vm(host: HostSession, vm_id: str, patience: Patience) -> CapturedVm:
    """Raises: HypervError; GoneError: no such VM."""
    return host.call("capture_vm", {"vm_id": vm_id}, CapturedVm, patience=patience)


def place_of(disk: CapturedDisk) -> tuple[str, int, int]:
    """What disks are put in order by."""
    return disk.controller, disk.controller_number, disk.location


def first_to_boot(vm: CapturedVm, disks: Sequence[CapturedDisk]) -> CapturedDisk | None:
    """The first of the firmware's boot order that is one of `disks`; None: it names none."""
    slots = {_slot(disk.attachment): disk for disk in disks if disk.attachment}
    order = vm.firmware.boot_order if vm.firmware else []
    return next(
        (slots[slot] for entry in order if (slot := _slot(entry.attachment)) in slots), None
    )


def _slot(attachment: str) -> tuple[str, ...]:
    """CONTROLLER, 0 and 1 of `Microsoft:OWNER\\CONTROLLER\\0\\1\\D`: the owner is the VM or a
    checkpoint of it, and the end says whether it is a drive (D) or the disk in it (L)."""
    return tuple(attachment.upper().split("\\")[1:4])


def findings(vm: CapturedVm) -> Sequence[Finding]:
    """What a restore from this capture will lack."""
    found = []
    if vm.security.tpm:
        found.append(
            Finding(
                "capture.vtpm",
                "the VM has a virtual TPM, whose content stays on its host",
                "keep the recovery keys of disks that are encrypted with it; a restored VM gets a "
                "new TPM",
            )
        )
    if vm.security.encrypt_state and not vm.security.tpm:
        found.append(
            Finding(
                "capture.encrypted-state",
                "the VM encrypts its state with keys of its host",
                "none: a restored VM gets keys of its own",
                Weight.NOTE,
            )
        )
    return found
