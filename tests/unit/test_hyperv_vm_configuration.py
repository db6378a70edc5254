"""What a host is told of a captured VM's configuration."""

from __future__ import annotations

import pytest

from hyperv.captured_vm import CapturedVm, Firmware
from hyperv.vm_configuration import secure_boot_parameters


@pytest.mark.parametrize(
    ("secure_boot", "template", "told"),
    [
        (True, "MicrosoftUEFICertificateAuthority", "MicrosoftUEFICertificateAuthority"),
        (True, "", "MicrosoftWindows"),
        (False, "MicrosoftWindows", ""),
    ],
)
def test_secure_boot_always_has_a_template(secure_boot: bool, template: str, told: str) -> None:
    """A VM that was captured on Windows Server 2012 R2 names none, and newer hosts take no empty
    name."""
    firmware = Firmware(
        secure_boot=secure_boot,
        secure_boot_template=template,
        secure_boot_template_id="",
        console_mode=0,
        pause_after_boot_failure=False,
        boot_order=[],
    )
    vm = CapturedVm.model_construct(firmware=firmware)
    assert secure_boot_parameters(vm) == {
        "secure_boot": secure_boot,
        "secure_boot_template": told,
    }


def test_a_vm_of_generation_1_has_no_secure_boot() -> None:
    """It has no firmware that could."""
    vm = CapturedVm.model_construct(firmware=None)
    assert secure_boot_parameters(vm) == {"secure_boot": False, "secure_boot_template": ""}
