"""What the practice Hyper-V host refuses, in the terms of Windows.

`wmi_return` is what a WMI method would return, `hresult` what a cmdlet's exception would carry;
the script layer chooses. Source: design notes on Hyper-V, section 3 (jobs), winerror.h.
"""

from __future__ import annotations

FAILED = 32768
ACCESS_DENIED = 32769
NOT_SUPPORTED = 32770
TIMEOUT = 32772
INVALID_PARAMETER = 32773
IN_USE = 32774
INVALID_STATE = 32775
FILE_NOT_FOUND = 32779

_HRESULTS = {
    ACCESS_DENIED: 0x80070005,
    INVALID_PARAMETER: 0x80070057,
    IN_USE: 0x80070020,
    FILE_NOT_FOUND: 0x80070002,
}


class HypervError(Exception):
    """A host refused an operation or failed in it; the code is that of a WMI method."""

    wmi_return = FAILED

    def __init__(self, text: str, wmi_return: int | None = None) -> None:
        super().__init__(text)
        if wmi_return is not None:
            self.wmi_return = wmi_return

    @property
    def hresult(self) -> int:
        """As .NET has it: a signed 32-bit number."""
        return _HRESULTS.get(self.wmi_return, 0x80004005) - (1 << 32)


class NotFoundError(HypervError):
    """There is no such VM, file or object."""

    wmi_return = FILE_NOT_FOUND


class InUseError(HypervError):
    """Another holder has the file open in a mode that excludes this use."""

    wmi_return = IN_USE


class StateError(HypervError):
    """The operation cannot be performed while the object is in its current state."""

    wmi_return = INVALID_STATE


class ParameterError(HypervError):
    """The parameter is incorrect."""

    wmi_return = INVALID_PARAMETER


class CorruptDiskError(HypervError):
    """The file or directory is corrupted and unreadable."""
