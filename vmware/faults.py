"""Foreign failures (vim fault, socket, TLS, HTTP, XML) become our errors here and nowhere else.

The nearest ancestor of the fault's class that is in `_KINDS` decides; an unknown fault becomes a
RefusedError that quotes it. Server messages are quoted shortened, and never parsed; of an HTTP
status that calls came back with, the number decides. Pure; thread-safe.
Source: vSphere API reference, faults; `NotAuthenticated` derives from `NoPermission` there.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from vmware.errors import (
    BusyError,
    CancelledError,
    CertificateError,
    FileFaultError,
    InvalidPowerStateError,
    InvalidRequestError,
    LoginError,
    NoSpaceError,
    ObjectGoneError,
    PrivilegeError,
    ProtocolError,
    QuestionPendingError,
    QuiesceError,
    RefusedError,
    SessionLostError,
    SnapshotError,
    UnreachableError,
    UnsupportedError,
    VsphereError,
)

_QUOTED_CHARACTERS = 400  # of a server's message
_PROXY_ALONE = re.compile(r"50[234]\b")  # vCenter's proxy, while vCenter itself restarts

_KINDS: dict[type, type[VsphereError]] = {
    vim.fault.InvalidLogin: LoginError,
    vim.fault.NotAuthenticated: SessionLostError,
    vim.fault.NoPermission: PrivilegeError,
    vim.fault.RestrictedVersion: UnsupportedError,
    vmodl.fault.NotEnoughLicenses: UnsupportedError,
    vmodl.fault.ManagedObjectNotFound: ObjectGoneError,
    vim.fault.NotFound: ObjectGoneError,
    vmodl.fault.HostCommunication: UnreachableError,
    vim.fault.HostConnectFault: UnreachableError,
    vim.fault.Timedout: BusyError,
    vim.fault.TaskInProgress: BusyError,
    vim.fault.FileLocked: BusyError,
    vim.fault.ResourceInUse: BusyError,
    vim.fault.ConcurrentAccess: BusyError,
    vim.fault.SnapshotLocked: BusyError,
    vmodl.fault.RequestCanceled: CancelledError,
    vmodl.fault.NotSupported: UnsupportedError,
    vmodl.fault.NotImplemented: UnsupportedError,
    vmodl.fault.MethodNotFound: UnsupportedError,
    vmodl.fault.InvalidArgument: InvalidRequestError,
    vmodl.fault.InvalidRequest: InvalidRequestError,
    vim.fault.InvalidName: InvalidRequestError,
    vim.fault.InvalidDatastore: InvalidRequestError,
    vim.fault.InaccessibleDatastore: UnreachableError,
    vim.fault.InvalidVmConfig: InvalidRequestError,
    vim.fault.InvalidFolder: InvalidRequestError,
    vim.fault.AlreadyExists: InvalidRequestError,
    vim.fault.DuplicateName: InvalidRequestError,
    vim.fault.FileFault: FileFaultError,
    vim.fault.NoDiskSpace: NoSpaceError,
    vim.fault.InsufficientStorageSpace: NoSpaceError,
    vim.fault.SnapshotFault: SnapshotError,
    vim.fault.ApplicationQuiesceFault: QuiesceError,
    vim.fault.FilesystemQuiesceFault: QuiesceError,
    vim.fault.InvalidPowerState: InvalidPowerStateError,
    vim.fault.QuestionPending: QuestionPendingError,
}

#: What can come out of a call to the server besides a VsphereError.
FOREIGN_ERRORS: tuple[type[Exception], ...] = (
    vmodl.MethodFault,
    OSError,
    http.client.HTTPException,
    ExpatError,
)


def fault_name(fault: object) -> str:
    """Such as `vim.fault.FileLocked`."""
    return type(fault).__name__.removeprefix("pyVmomi.VmomiSupport.")


def translate(error: BaseException, what: str) -> VsphereError:
    """The VsphereError for `error`, which happened during `what` (“read the inventory”).

    A VsphereError is returned as it is. Use it as `raise translate(error, what) from error`.
    """
    if isinstance(error, VsphereError):
        return error
    if isinstance(error, vmodl.MethodFault):
        return _of_fault(error, what)
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = getattr(error, "verify_message", None) or _short(str(error))
        return CertificateError(f"{what}: the system does not trust it: {reason}")
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return ProtocolError(f"{what}: TLS failed: {getattr(error, 'reason', None) or error}")
    if isinstance(error, OSError | http.client.RemoteDisconnected):
        return UnreachableError(f"{what}: {_reason(error)}")
    if type(error) is http.client.HTTPException and _PROXY_ALONE.match(str(error)):
        return UnreachableError(f"{what}: HTTP {_short(str(error))}")
    if isinstance(error, http.client.HTTPException | ExpatError):
        return ProtocolError(f"{what}: {type(error).__name__}: {_short(str(error))}")
    return RefusedError(f"{what}: {type(error).__name__}: {_short(str(error))}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Raise whatever the server or the network does to the block as a VsphereError."""
    try:
        yield
    except FOREIGN_ERRORS as error:
        raise translate(error, what) from error


def _of_fault(fault: Any, what: str) -> VsphereError:
    name = fault_name(fault)
    text = f"{what}: {_message(fault)} ({name})"
    kind = next((_KINDS[base] for base in type(fault).__mro__ if base in _KINDS), RefusedError)
    if kind is PrivilegeError:
        return _privilege(fault, text, name)
    return kind(text, fault=name)


def _privilege(fault: Any, text: str, name: str) -> PrivilegeError:
    privilege = getattr(fault, "privilegeId", None) or ""
    holder = getattr(fault, "object", None)
    entity = holder._GetMoId() if holder is not None else ""
    missing = f": {privilege} is missing on {entity}" if privilege else ""
    return PrivilegeError(text + missing, privilege=privilege, entity=entity, fault=name)


def _message(fault: Any) -> str:
    words = [_short(str(fault.msg))] if fault.msg else []
    for field in ("file", "name", "invalidProperty", "text"):
        value = getattr(fault, field, None)
        if isinstance(value, str) and value and value not in "".join(words):
            words.append(_short(value))
    words += [
        _short(str(detail.message))
        for detail in (getattr(fault, "faultMessage", None) or [])[:3]
        if detail.message
    ]
    return "; ".join(words) or "the server gave no message"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _QUOTED_CHARACTERS else line[: _QUOTED_CHARACTERS - 1] + "…"


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, socket.gaierror):
        return f"the name cannot be resolved ({error.strerror})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return _short(str(error)) or type(error).__name__
