"""What the server and the network do wrong becomes one of few kinds of error."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from xml.parsers.expat import ExpatError

import pytest
from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter

from vmware import errors, soap_tree
from vmware.faults import translate, translated


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (vim.fault.InvalidLogin(), errors.LoginError),
        (vim.fault.PasswordExpired(), errors.LoginError),
        (vim.fault.NotAuthenticated(), errors.SessionLostError),
        (vim.fault.NoPermission(), errors.PrivilegeError),
        (vmodl.fault.ManagedObjectNotFound(), errors.ObjectGoneError),
        (vim.fault.NotFound(), errors.ObjectGoneError),
        (vim.fault.TaskInProgress(), errors.BusyError),
        (vim.fault.VAppTaskInProgress(), errors.BusyError),
        (vim.fault.FileLocked(), errors.BusyError),
        (vim.fault.FileNotFound(), errors.FileFaultError),
        (vim.fault.NoDiskSpace(), errors.NoSpaceError),
        (vim.fault.TooManySnapshotLevels(), errors.SnapshotError),
        (vim.fault.ApplicationQuiesceFault(), errors.QuiesceError),
        (vim.fault.InvalidPowerState(), errors.InvalidPowerStateError),
        (vmodl.fault.MethodNotFound(), errors.UnsupportedError),
        (vmodl.fault.NotSupported(), errors.UnsupportedError),
        (vmodl.fault.InvalidArgument(), errors.InvalidRequestError),
        (vim.fault.InvalidDeviceSpec(), errors.InvalidRequestError),
        (vmodl.fault.HostNotReachable(), errors.UnreachableError),
        (vmodl.fault.RequestCanceled(), errors.CancelledError),
        (vim.fault.DasConfigFault(), errors.RefusedError),
        (vmodl.fault.SystemError(), errors.RefusedError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else value.__name__,
)
def test_a_fault_becomes_the_kind_of_its_nearest_ancestor(fault: Any, kind: type) -> None:
    """Derived faults are told from their bases: FileLocked is busy, FileNotFound is a file."""
    error = translate(fault, "do it")
    assert type(error) is kind
    assert str(error).startswith("do it: ")
    assert error.fault == type(fault).__name__.removeprefix("pyVmomi.VmomiSupport.")


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (ConnectionRefusedError(111, "Connection refused"), errors.UnreachableError),
        (TimeoutError("timed out"), errors.UnreachableError),
        (socket.gaierror(-2, "Name or service not known"), errors.UnreachableError),
        (http.client.RemoteDisconnected("gone"), errors.UnreachableError),
        (ssl.SSLEOFError(8, "EOF"), errors.UnreachableError),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), errors.ProtocolError),
        (ssl.SSLCertVerificationError(1, "self-signed"), errors.CertificateError),
        (http.client.BadStatusLine("?"), errors.ProtocolError),
        (http.client.HTTPException("404 Not Found"), errors.ProtocolError),
        (ExpatError("not well-formed"), errors.ProtocolError),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, type) else "",
)
def test_a_failure_of_the_network_becomes_a_kind_too(failure: Exception, kind: type) -> None:
    """What passes by itself is retryable; what talks nonsense is not."""
    with pytest.raises(kind) as caught, translated("read"):
        raise failure
    assert type(caught.value) is kind
    assert caught.value.__cause__ is failure
    assert caught.value.retryable == (kind is errors.UnreachableError)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_vcenter_that_restarts_is_away_and_not_another_server(status: int) -> None:
    """Its proxy answers for it, for minutes. Tasks, snapshots and runs must outlast that."""

    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            stub: Any = SoapStubAdapter(host="127.0.0.1", port=-server.server_port)
            instance = vim.ServiceInstance("ServiceInstance", stub)
            with pytest.raises(errors.UnreachableError, match=str(status)), translated("ask"):
                instance.CurrentTime()
            collector = vmodl.query.PropertyCollector("propertyCollector", stub)
            method = vmodl.query.PropertyCollector.ContinueRetrievePropertiesEx
            with pytest.raises(errors.UnreachableError, match=str(status)), translated("ask"):
                soap_tree.invoke(collector, method, ["token"])
        finally:
            server.shutdown()
            thread.join()


def test_a_privilege_error_says_which_and_where() -> None:
    """Operators grant privileges by name, on objects by id."""
    target = vim.VirtualMachine("vm-7", None)
    fault = vim.fault.NoPermission(object=target, privilegeId="VApp.Export")
    error = translate(fault, "export")
    assert isinstance(error, errors.PrivilegeError)
    assert (error.privilege, error.entity) == ("VApp.Export", "vm-7")
    assert "VApp.Export is missing on vm-7" in str(error)


def test_a_servers_message_is_quoted_on_one_short_line() -> None:
    """Megabytes with line breaks do not reach a log or a terminal."""
    error = translate(vim.fault.FileFault(file="[ds] a.vmdk", msg="lost\n" * 100_000), "read")
    assert "\n" not in str(error) and len(str(error)) < 600
    assert "[ds] a.vmdk" in str(error)


def test_our_own_errors_pass_unchanged() -> None:
    """Translating twice is translating once."""
    error = errors.BusyError("later")
    assert translate(error, "again") is error


def test_codes_are_unique() -> None:
    """A code names one class."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    codes = [kind.code for kind in kinds if issubclass(kind, errors.VsphereError)]
    assert len(codes) == len(set(codes))
