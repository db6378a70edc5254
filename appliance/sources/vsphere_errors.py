"""Failures of `vmware/` become failures of the appliance here, once.

Data path: every adapter over `vmware/` runs its calls inside `as_appliance_errors`. The nearest
ancestor in the table decides; code and `retryable` of the original are kept, the message begins
with the name of the host. The docstrings are what the operator reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from appliance.base.errors import SourceError
from vmware import errors as leaf
from vmware.nas_datastore import NasMountError


class VsphereFailedError(SourceError):
    """vSphere could not do it; the message says what and why."""

    code = "vsphere.failed"

    def __init__(self, message: str, cause: leaf.VsphereError | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.retryable = cause.retryable


class VsphereUnreachableError(VsphereFailedError):
    """The server, or a host behind it, does not answer; check address, network and firewall."""

    code = "vsphere.unreachable"
    retryable = True


class VsphereLoginError(VsphereFailedError):
    """The server refused user name or password. Remove the host and add it with the right ones."""

    code = "vsphere.login"


class VsphereCertificateError(VsphereFailedError):
    """The server's certificate is not the one that was accepted; no password was sent.

    Find out whether it was replaced on purpose. If so, remove the host and add it again; if not,
    somebody may be in between.
    """

    code = "vsphere.certificate"

    def __init__(self, message: str, cause: leaf.VsphereError | None = None) -> None:
        super().__init__(message, cause)
        self.expected = cause.expected if isinstance(cause, leaf.CertificateError) else ""
        self.found = cause.found if isinstance(cause, leaf.CertificateError) else ""


class VsphereSessionLostError(VsphereFailedError):
    """The server dropped our session, and logging in again did not bring it back. Try again."""

    code = "vsphere.session-lost"
    retryable = True


class VspherePrivilegeError(VsphereFailedError):
    """The account lacks a privilege; `holdfast host test` lists every missing one."""

    code = "vsphere.privilege"


class VsphereGoneError(VsphereFailedError):
    """The VM, snapshot, host or other object does not exist any more."""

    code = "vsphere.gone"


class VsphereBusyError(VsphereFailedError):
    """Another task or a file lock is in the way; it passes. Try again later."""

    code = "vsphere.busy"
    retryable = True


class VsphereUnsupportedError(VsphereFailedError):
    """This server, host or VM cannot do that."""

    code = "vsphere.unsupported"


class VsphereInvalidRequestError(VsphereFailedError):
    """The server found a request invalid; the message names the argument. Please report it."""

    code = "vsphere.invalid-request"


class VsphereFileError(VsphereFailedError):
    """A file on a vSphere datastore is missing or cannot be used; the message names it."""

    code = "vsphere.file"


class VsphereMountError(VsphereFailedError):
    """An ESXi host did not mount the appliance's NFS export; the message names the host, and what
    to look at there."""

    code = "vsphere.nas-mount"


class VsphereNoSpaceError(VsphereFailedError):
    """A vSphere datastore is full; free space there, then try again."""

    code = "vsphere.no-space"


class VsphereSnapshotError(VsphereFailedError):
    """A snapshot could not be made or removed; the message says why."""

    code = "vsphere.snapshot"


class VsphereQuiesceError(VsphereSnapshotError):
    """The guest could not be brought to rest; see its VSS writers or its freeze scripts."""

    code = "vsphere.quiesce"
    retryable = True


class VspherePowerStateError(VsphereFailedError):
    """The VM is on, or off, and the operation needs the contrary."""

    code = "vsphere.power-state"


class VsphereQuestionError(VsphereFailedError):
    """The VM waits for an answer to a question; answer it in the vSphere client."""

    code = "vsphere.question"


class VsphereRefusedError(VsphereFailedError):
    """The server refused a call for a reason of its own; the message quotes it."""

    code = "vsphere.refused"


class VsphereTaskFailedError(VsphereRefusedError):
    """A vSphere task ended with an error; the message quotes it."""

    code = "vsphere.task-failed"


class VsphereDeadlineError(VsphereFailedError):
    """vSphere took longer than it may; look there whether it is still going on."""

    code = "vsphere.deadline"
    retryable = True


class VsphereCancelledError(VsphereFailedError):
    """A vSphere task was cancelled, by this run or by somebody in vSphere."""

    code = "vsphere.cancelled"


class VsphereTransportError(VsphereFailedError):
    """Disk data did not come through; the message says where or why. Try again."""

    code = "vsphere.transport"
    retryable = True


class VsphereProtocolError(VsphereFailedError):
    """The server answered in a way that its protocol does not allow; is it a vCenter or ESXi?"""

    code = "vsphere.protocol"


_KINDS: dict[type[leaf.VsphereError], type[VsphereFailedError]] = {
    leaf.VsphereError: VsphereFailedError,
    leaf.UnreachableError: VsphereUnreachableError,
    leaf.LoginError: VsphereLoginError,
    leaf.CertificateError: VsphereCertificateError,
    leaf.SessionLostError: VsphereSessionLostError,
    leaf.PrivilegeError: VspherePrivilegeError,
    leaf.ObjectGoneError: VsphereGoneError,
    leaf.BusyError: VsphereBusyError,
    leaf.UnsupportedError: VsphereUnsupportedError,
    leaf.InvalidRequestError: VsphereInvalidRequestError,
    leaf.FileFaultError: VsphereFileError,
    leaf.NoSpaceError: VsphereNoSpaceError,
    NasMountError: VsphereMountError,
    leaf.SnapshotError: VsphereSnapshotError,
    leaf.QuiesceError: VsphereQuiesceError,
    leaf.InvalidPowerStateError: VspherePowerStateError,
    leaf.QuestionPendingError: VsphereQuestionError,
    leaf.RefusedError: VsphereRefusedError,
    leaf.TaskFailedError: VsphereTaskFailedError,
    leaf.DeadlineError: VsphereDeadlineError,
    leaf.CancelledError: VsphereCancelledError,
    leaf.TransportError: VsphereTransportError,
    leaf.ProtocolError: VsphereProtocolError,
}


def appliance_error(host: str, error: leaf.VsphereError) -> VsphereFailedError:
    """Return our error for one of `vmware/`; raise it `from` the original."""
    for ancestor in type(error).__mro__:
        kind = _KINDS.get(ancestor)
        if kind is not None:
            return kind(f"{host}: {error}", error)
    raise AssertionError("every VsphereError descends from VsphereError")


@contextmanager
def as_appliance_errors(host: str) -> Iterator[None]:
    """Run calls of `vmware/` in the block; `host` is the name that the operator gave it."""
    try:
        yield
    except leaf.VsphereError as error:
        raise appliance_error(host, error) from error
