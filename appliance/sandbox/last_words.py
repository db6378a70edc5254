"""What a guest that did not come up said about it: panics, missing kernels, emergency shells. Pure.

Looks at lines of the serial console and at the screen in text mode. The words are those of the
programs themselves: Linux, GRUB 2, SeaBIOS, systemd, dracut, initramfs-tools, Windows.
A finding explains a failure; it does not make one: a guest may print anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from appliance.base.reasons import Reason

KERNEL_PANIC = Reason(
    "verify.kernel-panic",
    "the guest's kernel stopped with a panic",
    "read the serial log; try an older recovery point",
)
NO_BOOTABLE_DISK = Reason(
    "verify.no-bootable-disk",
    "the firmware found nothing to boot on the guest's disks",
    "give the disk interface and firmware that the VM had; try an older recovery point",
)
BOOT_FILE_MISSING = Reason(
    "verify.boot-file-missing",
    "the boot loader did not find the system that it should start",
    "try an older recovery point; look at the guest's boot partition",
)
EMERGENCY_SHELL = Reason(
    "verify.emergency-shell",
    "the guest stopped in an emergency shell while starting",
    "read the serial log: a file system or a driver is missing",
)

_SIGNS: tuple[tuple[Reason, re.Pattern[str]], ...] = (
    (
        KERNEL_PANIC,
        re.compile(r"Kernel panic - not syncing|end Kernel panic|Fatal exception in interrupt"),
    ),
    (
        BOOT_FILE_MISSING,
        re.compile(
            r"error: (file `[^']{0,200}' not found|you need to load the kernel first"
            r"|unknown filesystem|no such (device|partition)|disk `[^']{0,200}' not found"
            r"|attempt to read or write outside of disk)"
            r"|grub rescue>|^grub> ?$|BOOTMGR is missing|NTLDR is missing|Missing operating system"
        ),
    ),
    (
        NO_BOOTABLE_DISK,
        re.compile(r"No bootable device|not a bootable disk|Operating System not found"),
    ),
    (
        EMERGENCY_SHELL,
        re.compile(
            r"You are in (emergency|rescue) mode|Give root password for maintenance"
            r"|^\(initramfs\) |^dracut:/#|Dropping to a shell|Entering emergency mode"
        ),
    ),
)


def find_last_words(lines: Iterable[str]) -> tuple[Reason, str] | None:
    """Return the gravest sign and the line that shows it, cut to 200 characters; None: none."""
    found: dict[str, str] = {}
    for line in lines:
        for reason, pattern in _SIGNS:
            if pattern.search(line):
                found.setdefault(reason.code, line.strip()[:200])
    return next(
        ((reason, found[reason.code]) for reason, _ in _SIGNS if reason.code in found), None
    )
