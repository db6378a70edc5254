"""What can go wrong with vSphere, in few kinds; `code` is stable.

Every call of this library raises these and nothing else (programming errors aside). `retryable`
says whether the same call may succeed later without anybody changing anything. `fault` is the name
of the vim fault behind it, such as `vim.fault.FileLocked`, or empty: for messages and logs, never
to be decided upon. The docstring of a class is the text for the operator.
"""

from __future__ import annotations


class VsphereError(Exception):
    """vSphere could not do it; the message says what and why."""

    code = "vsphere.failed"
    retryable = False

    def __init__(self, message: str, *, fault: str = "") -> None:
        super().__init__(message)
        self.fault = fault


class UnreachableError(VsphereError):
    """The server (or a host behind it) does not answer; check address, network and firewall."""

    code = "vsphere.unreachable"
    retryable = True


class LoginError(VsphereError):
    """The server refused user name or password; correct them with `host add`."""

    code = "vsphere.login"


class CertificateError(VsphereError):
    """The server's certificate is not the pinned one; nothing was sent. Was it replaced on purpose?
    Then accept it anew; if not, somebody may be in between."""

    code = "vsphere.certificate"

    def __init__(self, message: str, *, expected: str = "", found: str = "") -> None:
        super().__init__(message)
        self.expected = expected
        self.found = found


class SessionLostError(VsphereError):
    """The server dropped our session, and logging in again did not bring it back."""

    code = "vsphere.session-lost"
    retryable = True


class PrivilegeError(VsphereError):
    """The service account lacks a privilege; `host test` lists every missing one and where."""

    code = "vsphere.privilege"

    def __init__(
        self, message: str, *, privilege: str = "", entity: str = "", fault: str = ""
    ) -> None:
        super().__init__(message, fault=fault)
        self.privilege = privilege
        self.entity = entity


class ObjectGoneError(VsphereError):
    """The VM, snapshot, host or other object does not exist (any more)."""

    code = "vsphere.gone"


class BusyError(VsphereError):
    """Another task or a file lock is in the way; it passes."""

    code = "vsphere.busy"
    retryable = True


class UnsupportedError(VsphereError):
    """This server, host or VM cannot do that."""

    code = "vsphere.unsupported"


class InvalidRequestError(VsphereError):
    """The server found the request invalid; the message names the argument."""

    code = "vsphere.invalid-request"


class FileFaultError(VsphereError):
    """A file on a vSphere datastore is missing or cannot be used; the message names it."""

    code = "vsphere.file"


class NoSpaceError(VsphereError):
    """A vSphere datastore is full; free space there."""

    code = "vsphere.no-space"


class SnapshotError(VsphereError):
    """The snapshot could not be made or removed; the message says why."""

    code = "vsphere.snapshot"


class QuiesceError(SnapshotError):
    """The guest could not be brought to rest; see its VSS writers or its freeze scripts."""

    code = "vsphere.quiesce"
    retryable = True


class InvalidPowerStateError(VsphereError):
    """The VM is on (or off), and the operation needs the contrary."""

    code = "vsphere.power-state"


class QuestionPendingError(VsphereError):
    """The VM waits for an answer to a question; answer it in the vSphere client."""

    code = "vsphere.question"


class RefusedError(VsphereError):
    """The server refused the call for a reason of its own; the message quotes it."""

    code = "vsphere.refused"


class TaskFailedError(RefusedError):
    """A vSphere task ended with an error; the message quotes it."""

    code = "vsphere.task-failed"


class DeadlineError(VsphereError):
    """It took longer than it may; it may still be going on in vSphere."""

    code = "vsphere.deadline"
    retryable = True


class CancelledError(VsphereError):
    """The call was cancelled, by us or by somebody in vSphere."""

    code = "vsphere.cancelled"


class TransportError(VsphereError):
    """Disk data did not come through; the message says at which byte or why."""

    code = "vsphere.transport"
    retryable = True


class ProtocolError(VsphereError):
    """The server answered in a way that its protocol does not allow, or too much."""

    code = "vsphere.protocol"
