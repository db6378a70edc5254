"""Which disk of a captured VM its firmware boots from."""

from __future__ import annotations

import pytest

from hyperv.captured_vm import BootEntry, Firmware
from hyperv.config_capture import Capture, CapturedDisk

SLOT = "Microsoft:{}\\CONTROLLER\\0\\{}\\D"


def disk(number: int, location: int, attachment: str | None = None) -> CapturedDisk:
    return CapturedDisk(
        number=number,
        controller="scsi",
        controller_number=0,
        location=location,
        path=f"D:\\VM\\{number}.vhdx",
        format="vhdx",
        type="dynamic",
        virtual_disk_id="",
        size_bytes=1 << 30,
        logical_sector_bytes=512,
        physical_sector_bytes=4096,
        attachment=SLOT.format("CHECKPOINT", location) if attachment is None else attachment,
    )


def capture(disks: list[CapturedDisk], boots: list[str] | None) -> Capture:
    firmware = None
    if boots is not None:
        firmware = Firmware(
            secure_boot=True,
            secure_boot_template="MicrosoftWindows",
            secure_boot_template_id="",
            console_mode=0,
            pause_after_boot_failure=False,
            boot_order=[BootEntry(type=1, path="", attachment=each) for each in boots],
        )
    return Capture.model_construct(host="hv1", os_version="10.0", vm=_Vm(firmware), disks=disks)


class _Vm:
    def __init__(self, firmware: Firmware | None) -> None:
        self.firmware = firmware


@pytest.mark.parametrize(
    ("disks", "boots", "found"),
    [
        ([disk(0, 0), disk(1, 1)], [SLOT.format("VM", 1), SLOT.format("VM", 0)], 1),
        ([disk(0, 0), disk(1, 1)], ["", SLOT.format("vm", 1)], 1),  # the network is tried first
        ([disk(1, 1), disk(0, 0)], [SLOT.format("VM", 7)], 0),  # a disk that is not in the point
        ([disk(1, 1, ""), disk(0, 0, "")], [SLOT.format("VM", 1)], 0),  # an older point
        ([disk(1, 1), disk(0, 0)], None, 0),  # BIOS
        ([], [SLOT.format("VM", 0)], None),
    ],
)
def test_the_boot_disk_is_the_first_of_the_firmware_that_the_point_has(
    disks: list[CapturedDisk], boots: list[str] | None, found: int | None
) -> None:
    """Else the first by its place; the order names the VM's slots, the point its checkpoint's."""
    assert capture(disks, boots).boot_disk == found
