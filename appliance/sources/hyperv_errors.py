"""Failures of `hyperv/` become failures of the appliance here, once.

Data path: every adapter over `hyperv/` runs its calls inside `hyperv_calls`. The nearest ancestor
in the table decides; `retryable` of the original is kept, the message begins with the name of the
host. The docstrings are what the operator reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.base.errors import SourceError
from appliance.base.run_context import CancelToken
from hyperv import errors as leaf
from hyperv.vhdx.errors import DiskFileError


class HypervFailedError(SourceError):
    """The Hyper-V host could not do it; the message says what and why."""

    code = "hyperv.failed"

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class HypervUnreachableError(HypervFailedError):
    """The host does not answer; check address, network, firewall and its WinRM listener."""

    code = "hyperv.unreachable"
    retryable = True


class HypervLoginError(HypervFailedError):
    """The host refused user name or password, or this kind of login (`--auth`).

    A local account that is not the built-in administrator also needs the host's
    `LocalAccountTokenFilterPolicy`.
    """

    code = "hyperv.login"


class HypervCertificateError(HypervFailedError):
    """The host's certificate is not the one that was accepted; no password was sent.

    Find out whether it was replaced on purpose. If so, remove the host and add it again; if not,
    somebody may be in between.
    """

    code = "hyperv.certificate"


class HypervBusyError(HypervFailedError):
    """The host, or another task of the VM, is in the way; it passes. Try again later."""

    code = "hyperv.busy"
    retryable = True


class HypervSessionLostError(HypervFailedError):
    """The host dropped our shell in the middle of a call. Try again."""

    code = "hyperv.session-lost"
    retryable = True


class HypervDeadlineError(HypervFailedError):
    """The host took longer than it may; look there whether it is still going on."""

    code = "hyperv.deadline"
    retryable = True


class HypervProtocolError(HypervFailedError):
    """The host answered in a way that was not agreed; is it a Windows host with PowerShell 3 or
    later?"""

    code = "hyperv.protocol"


class HypervRefusedError(HypervFailedError):
    """A call on the host failed; the message quotes it."""

    code = "hyperv.refused"


class HypervGoneError(HypervFailedError):
    """The VM, checkpoint or file does not exist on this host any more; was the VM moved?"""

    code = "hyperv.gone"


class HypervAccessError(HypervFailedError):
    """The account lacks a right on the host; make it a member of its local Administrators."""

    code = "hyperv.access"


class HypervCheckpointError(HypervFailedError):
    """A recovery checkpoint could not be made, converted or removed; the message says why."""

    code = "hyperv.checkpoint"


class HypervMovedError(HypervFailedError):
    """The VM moved to another node of its cluster while it was being frozen; nothing was left
    behind. Try again, and keep live migration out of the backup window."""

    code = "hyperv.moved"
    retryable = True


class HypervNodeError(HypervFailedError):
    """The node that owns the VM is not registered here, or does not answer; `host test` says
    which. Register it with `host add --node`, or bring it back."""

    code = "hyperv.node"
    retryable = True


class HypervConsistencyError(HypervCheckpointError):
    """The guest could not be brought to a consistent state; see its integration services."""

    code = "hyperv.consistency"
    retryable = True


class HypervMergeError(HypervCheckpointError):
    """The disks of a removed checkpoint were not merged in time; look at the host's VMMS log."""

    code = "hyperv.merge"


class HypervFileInUseError(HypervFailedError):
    """A disk file is open for writing by something else, so it is not frozen."""

    code = "hyperv.file-in-use"
    retryable = True


class HypervFileError(HypervFailedError):
    """A disk file of the host cannot be read or written; the message names it and says why."""

    code = "hyperv.file"


class HypervFullError(HypervFileError):
    """The volume of the host that the disks are written to has no room left. Free some, or restore
    to a folder of another volume with --folder."""

    code = "hyperv.full"


class HypervSmbUnreachableError(HypervFileError):
    """The SMB connection to the host broke or was not made; check TCP port 445."""

    code = "hyperv.smb-unreachable"
    retryable = True


class HypervSmbUnprotectedError(HypervSmbUnreachableError):
    """An answer over SMB bore no valid signature or seal of the host; nothing of it was used.

    The next try makes a new connection. If it comes again and again, something between the
    appliance and the host changes packets.
    """

    code = "hyperv.smb-unprotected"
    retryable = True


_KINDS: dict[type[Exception], type[HypervFailedError]] = {
    leaf.HypervError: HypervFailedError,
    leaf.UnreachableError: HypervUnreachableError,
    leaf.LoginError: HypervLoginError,
    leaf.CertificateError: HypervCertificateError,
    leaf.BusyError: HypervBusyError,
    leaf.SessionLostError: HypervSessionLostError,
    leaf.DeadlineError: HypervDeadlineError,
    leaf.ProtocolError: HypervProtocolError,
    leaf.ScriptError: HypervRefusedError,
    leaf.GoneError: HypervGoneError,
    leaf.AccessError: HypervAccessError,
    leaf.CheckpointError: HypervCheckpointError,
    leaf.ConsistencyError: HypervConsistencyError,
    leaf.MergeError: HypervMergeError,
    leaf.SharingError: HypervFileInUseError,
    leaf.FileError: HypervFileError,
    leaf.FullError: HypervFullError,
    leaf.FileUnreachableError: HypervSmbUnreachableError,
    leaf.UnprotectedError: HypervSmbUnprotectedError,
    DiskFileError: HypervFileError,
}


@contextmanager
def hyperv_calls(host: str, cancel: CancelToken | None = None) -> Iterator[None]:
    """Run calls of `hyperv/` in the block; `host` is the name that the operator gave it.

    What ends because `cancel` was asked for is our CancelledError.
    """
    try:
        yield
    except leaf.CancelledError as error:
        if cancel is not None:
            cancel.check()
        raise HypervFailedError(f"{host}: {error}") from error
    except (leaf.HypervError, DiskFileError) as error:
        kind = next(_KINDS[each] for each in type(error).__mro__ if each in _KINDS)
        translated = kind(f"{host}: {error}", retryable=error.retryable)
        for note in getattr(error, "__notes__", ()):
            translated.add_note(note)
        raise translated from error
