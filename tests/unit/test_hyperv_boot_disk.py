"""Which disk of a captured VM its firmware boots from."""

from __future__ import annotations

import pytest

from appliance.targets.hyperv_plan import boot_disk
from hyperv.captured_vm import BootEntry, Firmware
from hyperv.config_capture import Capture, CapturedDisk

SLOT = "Microsoft:{}\\CONTROLLER\\0\\{}\\D"


def disk(
    number: int, location: int, attachment: str | None = None, *, controller: int = 0
) -> CapturedDisk:
    return CapturedDisk(
        number=number,
        controller="scsi",
        controller_number=controller,
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


ON_SECOND = "Microsoft:{}\\SECOND\\0\\{}\\{}"


@pytest.mark.parametrize(
    ("boots", "found"),
    [
        ([ON_SECOND.format("VM", 0, "D")], 1),  # another controller has a disk at location 0, too
        ([SLOT.format("VM", 0)], 0),
        ([SLOT.format("VM", 2), ON_SECOND.format("VM", 0, "D")], 1),  # a DVD drive comes first
    ],
)
def test_the_boot_disk_is_known_by_its_whole_place(boots: list[str], found: int) -> None:
    """A checkpoint names what is in a drive (`L`), the firmware the drive (`D`); a DVD drive is no
    disk, though one of another controller has its location."""
    disks = [
        disk(0, 0),
        disk(1, 0, ON_SECOND.format("CHECKPOINT", 0, "L"), controller=1),
        disk(2, 2, ON_SECOND.format("CHECKPOINT", 2, "L"), controller=1),
    ]
    of = capture(disks, boots)
    assert of.boot_disk == found
    assert boot_disk(of.vm, disks).number == found


def test_a_boot_disk_of_an_older_point_is_known_by_its_location() -> None:
    """Such a point does not say what the firmware calls its disks."""
    disks = [disk(0, 0, ""), disk(1, 1, "")]
    assert boot_disk(capture(disks, [SLOT.format("VM", 1)]).vm, disks).number == 1
