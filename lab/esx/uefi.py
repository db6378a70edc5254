"""UEFI firmware of a guest's QEMU: OVMF, its variables, and whose boot loaders it starts.

A machine with Secure Boot has variables in flash that only the firmware can write (SMM), so it is
a q35; without, any will do. What is trusted stands in the variables that a machine begins with:

- ANYTHING: Secure Boot is off.
- OTHER_VENDORS: Microsoft's keys, that for other vendors' loaders among them, so Debian's shim.
- WINDOWS_ONLY: Windows is not among the lab's guests, and Debian has no variables that trust it
  alone, so these trust a key that signed nothing here: what is not Windows is refused.

Thread model: functions. Source: Debian package ovmf, README.Debian; QEMU docs/interop/firmware.
"""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path

from lab.esx.errors import HostError

_FOLDER = Path("/usr/share/OVMF")
_ANY_CODE = "OVMF_CODE_4M.fd"
_SECURE_CODE = "OVMF_CODE_4M.secboot.fd"


class BootTrust(StrEnum):
    ANYTHING = "anything"
    OTHER_VENDORS = "other-vendors"
    WINDOWS_ONLY = "windows-only"


_VARIABLES = {
    BootTrust.ANYTHING: "OVMF_VARS_4M.fd",
    BootTrust.OTHER_VENDORS: "OVMF_VARS_4M.ms.fd",
    BootTrust.WINDOWS_ONLY: "OVMF_VARS_4M.snakeoil.fd",
}


def uefi_machine(trust: BootTrust) -> str:
    """QEMU's kind of machine."""
    return "pc" if trust is BootTrust.ANYTHING else "q35,smm=on"


def uefi_arguments(trust: BootTrust, folder: Path) -> list[str]:
    """The firmware; `folder` keeps its variables from start to start.

    Raises HostError: there is no such firmware here.
    """
    secure = trust is not BootTrust.ANYTHING
    code = _FOLDER / (_SECURE_CODE if secure else _ANY_CODE)
    variables, original = folder / f"variables-{trust}.fd", _FOLDER / _VARIABLES[trust]
    if not code.exists() or not original.exists():
        raise HostError("the Debian package ovmf is not installed")
    if not variables.exists():
        shutil.copyfile(original, variables)
    guard = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if secure else []
    return [
        *guard,
        *("-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={code}"),
        *("-drive", f"if=pflash,unit=1,format=raw,file={variables}"),
    ]
