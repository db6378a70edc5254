"""What a VM restored to Hyper-V does not have of the captured one, with a next step each. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from appliance.base.reasons import Reason
from hyperv.captured_vm import CapturedVm

_BOOT_ORDER = [1, 2, 3, 0]  # of every new VM: CD, IDE, network, floppy
_GUEST_SERVICE_INTERFACE = "6c09bb55-d683-4da0-8931-c9bf705f6480"  # alone off in a new VM


def devices_left_out(vm: CapturedVm) -> Iterator[Reason]:
    if vm.security.tpm:
        yield _NEW_TPM
    if any(dvd.path for dvd in vm.dvds):
        yield _NO_DVD


def settings_left_out(vm: CapturedVm) -> Iterator[Reason]:
    """Of a VM that was captured on Hyper-V: a translated one has none of them to lose."""
    settings = list(_settings(vm))
    if settings:
        yield Reason(
            "restore.settings-left-out",
            f"the new VM has the host's usual {', '.join(settings)}, the original had others",
            "set them in Hyper-V Manager if the guest needs it",
            warning=False,
        )


def _settings(vm: CapturedVm) -> Iterator[str]:
    if vm.bios is not None and vm.bios.startup_order != _BOOT_ORDER:
        yield "BIOS boot order"
    if vm.bios is not None and vm.bios.num_lock:
        yield "NumLock state"
    if vm.firmware is not None and vm.firmware.console_mode:
        yield "console mode"
    if any(each.enabled is (each.id == _GUEST_SERVICE_INTERFACE) for each in vm.integration):
        yield "integration services"


_NEW_TPM = Reason(
    "restore.new-tpm",
    "the VM has a new, empty TPM: the host's own keys protect the old one's content",
    "have the recovery keys of its disk encryption ready",
)
_NO_DVD = Reason(
    "restore.dvd-left-out",
    "the image in the VM's DVD drive is not part of a recovery point, so the drive was left out",
    "add a DVD drive on the host if the guest needs it",
    warning=False,
)
