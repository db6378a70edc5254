"""What a target is told of a VM: in its own hypervisor's terms, whichever took the point.

    point's document -> `point_hardware` -> `NativeVm` -> plan of a recovery or a restore
                           `- of the other hypervisor: `hyperv_from_vsphere`, `vsphere_from_hyperv`

Only the virtual hardware is translated. Nothing in the guest is changed: its drivers are what they
are, so hardware is chosen that most guests can start from, and reasons say what is not handled.
The same document always gives the same VM, for a step that is done twice asks twice. Pure.
Source: design notes on Hyper-V, section 11.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.targets.contract import WantedDisk

_SHOWN = 10

Vm = TypeVar("Vm")


class ForeignPointError(UsageError):
    """This recovery point holds no configuration that a VM could be made of here. Get its disks
    with `restore image`, or `export iscsi` for VHDX files."""

    code = "instant.foreign-point"


class CannotTranslateError(UsageError):
    """The VM has something that the other hypervisor has no place for; the message says what. Get
    its disks with `restore image`."""

    code = "translation.cannot"


@dataclass(frozen=True, slots=True, kw_only=True)
class NativeVm(Generic[Vm]):
    vm: Vm
    disks: tuple[WantedDisk, ...]  # their places are those in `vm`
    is_foreign: bool  # translated; whether the original is still there cannot be asked
    unconnected: frozenset[str] = frozenset()  # adapters that were on no network
    reasons: tuple[Reason, ...] = ()

    def left_unconnected(
        self, wanted: frozenset[str], mapping: Iterable[tuple[str, str]]
    ) -> frozenset[str]:
        """Old names, with those that were wanted; what is mapped is connected."""
        return wanted | (self.unconnected - {old for old, _ in mapping})


def placed(disks: Sequence[WantedDisk], places: Mapping[int, str]) -> tuple[WantedDisk, ...]:
    """The disks at their new places, given by number."""
    return tuple(
        WantedDisk(
            number=disk.number,
            label=disk.label,
            place=places[disk.number],
            size_bytes=disk.size_bytes,
            data_bytes=disk.data_bytes,
        )
        for disk in disks
    )


def listed(names: Iterable[str]) -> str:
    """For a sentence; long lists are cut."""
    every = [name[:80] for name in dict.fromkeys(names)]
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more


IDENTITY = Reason(
    "translation.identity",
    "another hypervisor cannot say whether the original still runs, so unless told otherwise the "
    "VM gets ids and hardware addresses of its own",
    "give --uuid keep or --mac keep if the original is gone for good",
    warning=False,
)
BOOT_ENTRIES = Reason(
    "translation.boot-entries",
    "boot entries and keys in the firmware's memory are not taken over; it looks for "
    r"\EFI\BOOT\BOOTX64.EFI",
    "if the guest does not boot, choose its boot file in the firmware's menu once",
)
ALLOCATIONS = Reason(
    "translation.allocations",
    "reservations, limits and shares of processors and memory are not taken over",
    "set them again where the VM shall stay",
    warning=False,
)


def drivers_unchanged(where: str, next_step: str) -> Reason:
    """`where`: the disks are on now."""
    return Reason(
        "translation.drivers",
        f"no driver in the guest was changed, and its disks are on {where} now",
        f"if it does not boot: {next_step}; put that right in the original and back it up again",
    )


def guest_software(text: str, next_step: str) -> Reason:
    return Reason("translation.guest-software", text, next_step)


def other_adapters(kinds: str) -> Reason:
    return Reason(
        "translation.adapters",
        f"network adapters became {kinds}, which the guest takes for new ones",
        "set fixed addresses and names of adapters in the guest again",
    )


def secure_boot(text: str, next_step: str) -> Reason:
    return Reason("translation.secure-boot", text, next_step)


def cut_down(parts: Iterable[str]) -> Reason:
    return Reason(
        "translation.limits",
        f"the hypervisor has not as much for a VM: {listed(parts)}",
        "see whether the guest is content with it",
    )


def adapters_left_out(labels: Iterable[str]) -> Reason:
    return Reason(
        "translation.adapters-left-out",
        f"the hypervisor has not as many network adapters for a VM; not made: {listed(labels)}",
        "see which networks the guest cannot do without, and map those by --network",
    )
