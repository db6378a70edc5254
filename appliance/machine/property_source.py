"""Where deployment properties come from: VMware's guestinfo, or QEMU's firmware configuration.

vCenter fills `guestinfo.ovfEnv` at each power-on; it is read through VMware Tools and blanked once
the settings are cached, so that a process in the guest finds no secret there later. QEMU's place
(`-fw_cfg name=opt/holdfast/ovf-env,file=…`) is for KVM; only root can read it, nobody can blank it.
Source: design notes on vSphere, section 9; QEMU docs/specs/fw_cfg.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from appliance.machine.errors import MachineCommandError
from appliance.machine.ovf_environment import MAX_BYTES
from appliance.machine.programs import run

_FW_CFG = Path("/sys/firmware/qemu_fw_cfg/by_name/opt/holdfast/ovf-env/raw")
_VENDOR = Path("/sys/class/dmi/id/sys_vendor")


class PropertySource(Protocol):
    name: str

    def read(self) -> bytes | None:
        """The OVF environment as it stands there; None where there is none."""

    def blank(self) -> None:
        """Take it away where that is possible. Raises MachineCommandError."""


class GuestInfo:
    name = "guestinfo.ovfEnv"

    def read(self) -> bytes | None:
        try:
            return run(["vmtoolsd", "--cmd", "info-get guestinfo.ovfEnv"]).encode() or None
        except MachineCommandError:  # "No value found"
            return None

    def blank(self) -> None:
        run(["vmtoolsd", "--cmd", "info-set guestinfo.ovfEnv "])


class FirmwareConfig:
    name = "fw_cfg opt/holdfast/ovf-env"

    def __init__(self, path: Path = _FW_CFG) -> None:
        self._path = path

    def read(self) -> bytes | None:
        try:
            with self._path.open("rb") as file:
                return file.read(MAX_BYTES + 1) or None
        except OSError:
            return None

    def blank(self) -> None:
        """It cannot be written by a guest."""


def property_source(vendor_path: Path = _VENDOR) -> PropertySource:
    """The one of the hypervisor below."""
    try:
        vendor = vendor_path.read_text()
    except OSError:
        vendor = ""
    return GuestInfo() if "VMware" in vendor else FirmwareConfig()
