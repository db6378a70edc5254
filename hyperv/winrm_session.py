"""One WinRS shell on a Hyper-V host: scripts go in through stdin, one answer comes out.

Data path: `host_session` keeps a few of these -> pywinrm -> the host. What is sent and answered is
`envelope`'s business; which errors there are is `winrm_faults`'.

Invariants: no credential is sent before the certificate is known to be the pinned one; over plain
HTTP only logins that seal their messages are used; the shell is closed at the host when this is
closed. A call that fails leaves no shell behind: the next call makes a new one.

Thread model: one thread at a time (pywinrm's sealing counts messages of one connection).
Source: `scripts/CONTRACT.md`; [MS-WSMV].
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from winrm.exceptions import WinRMError, WinRMOperationTimeoutError
from winrm.protocol import Protocol

from hyperv import envelope, pinned_http
from hyperv.credssp_sealing import CredsspEncryption
from hyperv.envelope import AnswerT
from hyperv.errors import (
    BusyError,
    DeadlineError,
    HypervError,
    LoginError,
    ProtocolError,
    ScriptError,
    SessionLostError,
    UnreachableError,
)
from hyperv.winrm_faults import FOREIGN_ERRORS, translate

OPERATION_TIMEOUT_S: Final = 20  # of one Receive: then the host answers "timed out", and again
READ_TIMEOUT_S: Final = 45
_STDIN_CHUNK_BYTES = 64 << 10
_STDERR_LIMIT_BYTES = 1 << 20
_IDLE_TIMEOUT = "PT7200S"
_UTF8_CODEPAGE = 65001


class Login(StrEnum):
    NTLM = "ntlm"
    KERBEROS = "kerberos"
    CREDSSP = "credssp"
    BASIC = "basic"


class Scheme(StrEnum):
    HTTPS = "https"
    HTTP = "http"  # messages are sealed by NTLM, Kerberos or CredSSP


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a host is, and how to log in. Raises LoginError: basic login over plain HTTP."""

    address: str
    port: int
    user: str
    login: Login = Login.NTLM
    scheme: Scheme = Scheme.HTTPS
    fingerprint_sha256: str = ""  # "AA:BB:…"; empty: the system's CAs decide, or plain HTTP
    password: Callable[[], str] = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.scheme is Scheme.HTTP and self.login is Login.BASIC:
            raise LoginError(
                f"{self.address}: a basic login needs HTTPS, it would send the password readable"
            )

    @property
    def url(self) -> str:
        try:
            literal = ipaddress.ip_address(self.address).version == 6
        except ValueError:
            literal = False
        host = f"[{self.address}]" if literal else self.address
        return f"{self.scheme}://{host}:{self.port}/wsman"


class WinrmSession:
    """Connects at the first call."""

    def __init__(
        self, endpoint: Endpoint, *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._endpoint = endpoint
        self._clock_s = clock_s
        self._protocol: Protocol | None = None
        self._shell: str | None = None

    def call(
        self,
        name: str,
        parameters: Mapping[str, Any],
        kind: type[AnswerT],
        *,
        deadline_s: float,
        check: Callable[[], None] = lambda: None,
    ) -> AnswerT:
        """Run a script and return its value; blocks until it has ended.

        Args:
            deadline_s: after this the command is terminated.
            check: called about every 20 s while the script runs; what it raises ends the call.

        Raises:
            ScriptError and its kinds: the script failed, or the host refused to run it.
            UnreachableError, LoginError, CertificateError, BusyError: nothing was run.
            SessionLostError, DeadlineError: it may have been run.
            ProtocolError.
        """
        try:
            stdout = self._run(name, parameters, self._clock_s() + deadline_s, check)
        except BaseException:
            self._abandon()
            raise
        return envelope.parse_answer(name, stdout, kind)

    def close(self) -> None:
        """Close the shell at the host; idempotent, never raises."""
        self._abandon()

    # Running

    def _run(
        self,
        name: str,
        parameters: Mapping[str, Any],
        end_s: float,
        check: Callable[[], None],
    ) -> bytes:
        stdin = envelope.request(name, parameters)
        where = f"{self._endpoint.address}, {name}"
        is_started = False  # the script begins when stdin ends
        try:
            protocol = self._connected()
            if self._shell is None:
                self._shell = protocol.open_shell(
                    codepage=_UTF8_CODEPAGE, noprofile=True, idle_timeout=_IDLE_TIMEOUT
                )
            command = protocol.run_command(
                self._shell, envelope.PROGRAM, envelope.arguments(), console_mode_stdin=False
            )
            for at in range(0, len(stdin), _STDIN_CHUNK_BYTES):
                last = at + _STDIN_CHUNK_BYTES >= len(stdin)
                chunk = stdin[at : at + _STDIN_CHUNK_BYTES]
                is_started = last
                protocol.send_command_input(self._shell, command, chunk, end=last)
            stdout = self._receive(protocol, self._shell, command, name, end_s, check)
            protocol.cleanup_command(self._shell, command)
            return stdout
        except HypervError:
            raise
        except FOREIGN_ERRORS as error:
            found = translate(error, where)
            if is_started and isinstance(found, UnreachableError | BusyError):
                found = SessionLostError(f"{found}; it may have been carried out")
            elif not is_started and isinstance(found, SessionLostError):  # idle for too long
                found = BusyError(f"{found}; nothing was run")
            raise found from error

    def _receive(
        self,
        protocol: Protocol,
        shell: str,
        command: str,
        name: str,
        end_s: float,
        check: Callable[[], None],
    ) -> bytes:
        stdout = bytearray()
        stderr_bytes = 0
        while True:
            if self._clock_s() > end_s:
                self._terminate(protocol, shell, command)
                raise DeadlineError(f"{self._endpoint.address}, {name}: the deadline has passed")
            try:
                check()
            except BaseException:
                self._terminate(protocol, shell, command)
                raise
            try:
                out, err, code, done = protocol.get_command_output_raw(shell, command)
            except WinRMOperationTimeoutError:
                continue
            stdout += out
            stderr_bytes += len(err)
            if len(stdout) > envelope.STDOUT_LIMIT_BYTES or stderr_bytes > _STDERR_LIMIT_BYTES:
                self._terminate(protocol, shell, command)
                raise ProtocolError(f"{name}: more output than an answer can have")
            if done:
                if code not in (0, 1):
                    raise ScriptError(f"{name}: PowerShell ended with {code}")
                return bytes(stdout)

    def _terminate(self, protocol: Protocol, shell: str, command: str) -> None:
        with suppress(*FOREIGN_ERRORS):  # the shell is closed next, and its commands with it
            protocol.cleanup_command(shell, command)

    # Connecting

    def _connected(self) -> Protocol:
        if self._protocol is None:
            self._protocol = self._new_protocol()
        return self._protocol

    def _new_protocol(self) -> Protocol:
        endpoint = self._endpoint
        sealed = endpoint.scheme is Scheme.HTTP
        try:
            protocol = Protocol(
                endpoint.url,
                transport=endpoint.login.value,
                username=endpoint.user,
                password=endpoint.password(),
                server_cert_validation="validate",
                ca_trust_path=pinned_http.AUTHORITIES,
                message_encryption="never" if sealed else "auto",
                read_timeout_sec=READ_TIMEOUT_S,
                operation_timeout_sec=OPERATION_TIMEOUT_S,
                proxy=None,
            )
            # pywinrm has no pinning: its session is built first, without a word to the host, and
            # sealing is begun only once the session goes through our adapter
            session = protocol.transport.build_session()
        except WinRMError as error:
            raise LoginError(f"{endpoint.address}: {error}") from error
        pin = endpoint.fingerprint_sha256
        pinned_http.prepare(session, pinned_http.digits(pin) if pin else None)
        if sealed:
            protocol.transport.setup_encryption(session)
            if endpoint.login is Login.CREDSSP:
                protocol.transport.encryption = CredsspEncryption(session)
        return protocol

    def _abandon(self) -> None:
        protocol, shell = self._protocol, self._shell
        self._protocol = self._shell = None
        if protocol is None:
            return
        # a host that cannot be reached closes the shell by itself after the idle time
        with suppress(*FOREIGN_ERRORS, HypervError):
            if shell is not None:
                protocol.close_shell(shell)
            else:
                protocol.transport.close_session()
