"""What a restore to Hyper-V cannot give back is said, and nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.base.reasons import Reason
from appliance.targets.hyperv_left_out import devices_left_out, settings_left_out
from hyperv.captured_vm import Bios, CapturedVm, Dvd, IntegrationService, Security
from tests.support.captured_vms import hyperv_vm

HEARTBEAT = "84eaae65-2f2e-45f5-9bb5-0e857dc8eb47"
GUEST_SERVICE_INTERFACE = "6c09bb55-d683-4da0-8931-c9bf705f6480"


def told(vm: CapturedVm) -> list[Reason]:
    return [*devices_left_out(vm), *settings_left_out(vm)]


def service(identity: str, *, enabled: bool) -> IntegrationService:
    return IntegrationService(id=identity, enabled=enabled)


@pytest.mark.parametrize("generation", [1, 2])
def test_of_a_vm_with_the_usual_settings_nothing_is_left_out(generation: int) -> None:
    """Also of one whose drive is empty."""
    usual = [
        service(HEARTBEAT, enabled=True),
        service(GUEST_SERVICE_INTERFACE, enabled=False),
    ]
    empty = Dvd(controller="ide", controller_number=1, location=0, path="")
    assert told(hyperv_vm(generation, integration=usual, dvds=[empty])) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bios": Bios(startup_order=[2, 1, 3, 0], num_lock=False)}, "BIOS boot order"),
        ({"bios": Bios(startup_order=[1, 2, 3, 0], num_lock=True)}, "NumLock state"),
        ({"integration": [service(HEARTBEAT, enabled=False)]}, "integration services"),
        (
            {"integration": [service(GUEST_SERVICE_INTERFACE, enabled=True)]},
            "integration services",
        ),
    ],
)
def test_a_setting_that_is_not_set_again_is_named(changes: dict[str, Any], word: str) -> None:
    """With what to do, and not as a warning: the VM runs without it."""
    (reason,) = told(hyperv_vm(**changes))
    assert reason.code == "restore.settings-left-out"
    assert word in reason.text
    assert not reason.warning


def test_a_console_mode_of_generation_2_is_named() -> None:
    """A serial console that nobody would look for."""
    vm = hyperv_vm(2)
    assert vm.firmware is not None
    firmware = vm.firmware.model_copy(update={"console_mode": 1})
    (reason,) = told(vm.model_copy(update={"firmware": firmware}))
    assert "console mode" in reason.text


def test_a_tpm_and_an_image_in_the_drive_are_named() -> None:
    """The TPM's content is gone for good: a warning."""
    image = Dvd(controller="ide", controller_number=1, location=0, path="D:\\setup.iso")
    security = Security(tpm=True, shielded=False, encrypt_state=False)
    reasons = told(hyperv_vm(dvds=[image], security=security))
    assert [(each.code, each.warning) for each in reasons] == [
        ("restore.new-tpm", True),
        ("restore.dvd-left-out", False),
    ]
