"""What can go wrong with a Hyper-V host, in few kinds; `code` is stable.

Every call of this library raises these and nothing else (programming errors aside; `hyperv.vhdx`
has errors of its own). `retryable` says whether the same call may succeed later without anybody
changing anything. The docstring of a class is the text for the operator.
"""

from __future__ import annotations


class HypervError(Exception):
    """The host could not do it; the message says what and why."""

    code = "hyperv.failed"
    retryable = False


class UnreachableError(HypervError):
    """The host does not answer; check address, network, firewall and its WinRM listener."""

    code = "hyperv.unreachable"
    retryable = True


class LoginError(HypervError):
    """The host refused user name or password, or this kind of login."""

    code = "hyperv.login"


class CertificateError(HypervError):
    """The host's certificate is not the pinned one; no credential was sent."""

    code = "hyperv.certificate"

    def __init__(self, message: str, *, expected: str = "", found: str = "") -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class BusyError(HypervError):
    """The host has no room for another call at the moment; it passes."""

    code = "hyperv.busy"
    retryable = True


class SessionLostError(HypervError):
    """The host dropped our shell in the middle of a call; whether it was done is not known."""

    code = "hyperv.session-lost"
    retryable = True


class DeadlineError(HypervError):
    """It took longer than it may; it may still be going on at the host."""

    code = "hyperv.deadline"
    retryable = True


class CancelledError(HypervError):
    """The call was cancelled by us."""

    code = "hyperv.cancelled"


class ProtocolError(HypervError):
    """The host answered in a way that was not agreed, or too much."""

    code = "hyperv.protocol"


class ScriptError(HypervError):
    """A call on the host failed; the message quotes it."""

    code = "hyperv.refused"

    def __init__(self, message: str, *, reason: str = "", wmi_return: int = 0) -> None:
        super().__init__(message)
        self.reason = reason  # a code of CONTRACT.md, "" for what the script did not foresee
        self.wmi_return = wmi_return


class GoneError(ScriptError):
    """The VM, checkpoint or file does not exist any more."""

    code = "hyperv.gone"


class AccessError(ScriptError):
    """The account lacks a right on the host."""

    code = "hyperv.access"


class CheckpointError(HypervError):
    """A recovery checkpoint could not be made, converted or removed; the message says why."""

    code = "hyperv.checkpoint"


class ConsistencyError(CheckpointError):
    """The guest could not be brought to a consistent state; see its integration services."""

    code = "hyperv.consistency"
    retryable = True


class MergeError(CheckpointError):
    """The disks of a removed checkpoint were not merged in time."""

    code = "hyperv.merge"


class SharingError(HypervError):
    """The file is open for writing by something else, so it is not frozen."""

    code = "hyperv.file-in-use"
    retryable = True


class FileError(HypervError):
    """A file of the host cannot be read or written over SMB; the message names it and why."""

    code = "hyperv.file"


class FullError(FileError):
    """The volume of the host that is written to has no room left."""

    code = "hyperv.full"


class FileUnreachableError(FileError):
    """The SMB connection broke or was not made; check TCP port 445."""

    code = "hyperv.smb-unreachable"
    retryable = True


class UnprotectedError(FileUnreachableError):
    """An answer over SMB bore no valid signature or seal of the host; nothing of it was used."""

    code = "hyperv.smb-unprotected"
