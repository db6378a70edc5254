"""WS-Man faults and failures of the connection as our few kinds of errors. Pure.

Source: fault codes of WS-Management at Windows (wsmerror.h); pywinrm 0.5's exceptions.
"""

from __future__ import annotations

import ssl
from typing import Final

import requests
from requests_credssp.exceptions import (
    AuthenticationException,
    InvalidConfigurationException,
    NTStatusException,
)
from spnego.exceptions import SpnegoError
from winrm.exceptions import (
    InvalidCredentialsError,
    WinRMError,
    WinRMOperationTimeoutError,
    WinRMTransportError,
    WSManFaultError,
)

from hyperv.errors import (
    AccessError,
    BusyError,
    CertificateError,
    HypervError,
    LoginError,
    ProtocolError,
    ScriptError,
    SessionLostError,
    UnreachableError,
)

OPERATION_TIMED_OUT: Final = 2150858793
SHELL_NOT_FOUND: Final = 2150858843
_ABORTED: Final = 995
_BUSY: Final = {
    2150859173: "all shells of this user are in use",
    2150859174: "too many operations of this user at once",
    2147943418: "the registry could not be read",  # seen at log-off; it passes
}
_ACCESS_DENIED: Final = 5
_REFUSED: Final = (
    InvalidCredentialsError,
    PermissionError,
    SpnegoError,
    AuthenticationException,
    InvalidConfigurationException,
    NTStatusException,
)
_QUOTED_CHARS = 500

FOREIGN_ERRORS: Final = (
    *_REFUSED,
    WinRMError,
    WinRMTransportError,
    WinRMOperationTimeoutError,
    requests.RequestException,
    OSError,
    # pywinrm parses what comes and asserts what it expects
    AssertionError,
    StopIteration,
    SyntaxError,  # xml.etree.ElementTree.ParseError
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
)


def translate(error: BaseException, where: str) -> HypervError:
    """Return our error for one of `FOREIGN_ERRORS`; `where` names host and call."""
    if isinstance(error, _REFUSED):
        return LoginError(f"{where}: user name or password, or the kind of login, is refused")
    if isinstance(error, WSManFaultError):
        return _fault(error, where)
    if isinstance(error, requests.exceptions.SSLError):
        return _tls(error, where)
    if isinstance(error, requests.RequestException | ssl.SSLError | OSError):
        return UnreachableError(f"{where}: {_short(error)}")
    if isinstance(error, WinRMTransportError):
        if error.code in (503, 502, 504):
            return BusyError(f"{where}: HTTP status {error.code}")
        return ProtocolError(f"{where}: HTTP status {error.code}")
    if isinstance(error, WinRMOperationTimeoutError):
        return SessionLostError(f"{where}: the host did not answer in time")
    return ProtocolError(f"{where}: {type(error).__name__}: {_short(error)}")


def _fault(error: WSManFaultError, where: str) -> HypervError:
    code = error.wsman_fault_code
    words = f"{where}: {error.reason[:_QUOTED_CHARS]}"
    if code in _BUSY:
        return BusyError(f"{where}: {_BUSY[code]}")
    if code in (SHELL_NOT_FOUND, _ABORTED):
        return SessionLostError(words)
    if code == _ACCESS_DENIED:
        return AccessError(words)
    number = f" (fault {code})" if code is not None else ""
    return ScriptError(words + number)


def _tls(error: requests.exceptions.SSLError, where: str) -> HypervError:
    text = str(error)
    if "ingerprint" in text:
        return CertificateError(f"{where}: the certificate is not the pinned one")
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return CertificateError(f"{where}: no known authority vouches for the certificate")
    return ProtocolError(f"{where}: {_short(error)}")


def _short(error: BaseException) -> str:
    return str(error)[:_QUOTED_CHARS]
