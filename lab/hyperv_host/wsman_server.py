"""The WinRM listeners: /wsman over HTTP with NTLM sealing, over HTTPS with NTLM or Basic.

What a Windows server refuses in its default configuration is refused: Basic over HTTP, messages
that are not sealed over HTTP, another content type, a request from who has not logged on.

Thread model: one thread per connection; a connection's logon belongs to that thread.
"""

from __future__ import annotations

import logging
import threading
import weakref
from base64 import b64encode
from pathlib import Path

from lab.faults import FaultName, FaultSwitches
from lab.hyperv_host.logon import Accounts, Logon, LogonRefusedError
from lab.hyperv_host.sealed_message import (
    is_sealed,
    seal_message,
    unseal,
)
from lab.hyperv_host.winrs import Winrs
from lab.hyperv_host.winrs_command import Program
from lab.hyperv_host.wsman_faults import WsmanCode, WsmanFaultError
from lab.hyperv_host.wsman_message import ENVELOPE_BYTES_MAX, WsmanRequest, fault, parse_request
from lab.vcenter.certificate import make_identity
from lab.vcenter.http_message import (
    BodyReader,
    ConnectionCut,
    ConnectionReset,
    HttpReply,
    HttpRequest,
)
from lab.vcenter.https_server import HttpsServer

log = logging.getLogger(__name__)

_PATH = "/wsman"
_SOAP = "application/soap+xml"
_PIECE_BYTES = 1 << 16
_REST_PIECES_MAX = 64
_BODY_BYTES_MAX = ENVELOPE_BYTES_MAX + 4096  # with the frame of a sealed message


class WsmanServer:
    """`folder` keeps the account file; `program` is what a command line starts."""

    def __init__(
        self,
        folder: Path,
        program: Program,
        *,
        computer: str,
        user: str,
        password: str,
        switches: FaultSwitches,
        address: str = "127.0.0.1",
    ) -> None:
        self.computer, self.address = computer, address
        self._switches = switches
        self._accounts = Accounts(folder, computer=computer, user=user, password=password)
        self.winrs = Winrs(program, owner=f"{computer}\\{user}")
        identity = make_identity(address)
        self.fingerprint = identity.fingerprint_sha256
        self.certificate_pem = identity.certificate_pem
        self._http = HttpsServer(None, address=address)
        self._https = HttpsServer(identity.context, address=address)
        self.http_port, self.https_port = self._http.port, self._https.port
        self._ended = threading.Event()
        self._logons: weakref.WeakKeyDictionary[object, Logon] = weakref.WeakKeyDictionary()
        self._http.route(_PATH, lambda request: self._answer(request, secure=False))
        self._https.route(_PATH, lambda request: self._answer(request, secure=True))

    def start(self) -> None:
        self._http.start()
        self._https.start()

    def close(self) -> None:
        """Cut the connections, end the shells and their programs. Idempotent."""
        self._ended.set()
        self.winrs.close()
        self._http.close()
        self._https.close()

    def _answer(self, request: HttpRequest, *, secure: bool) -> HttpReply:
        if self._switches.take(FaultName.DYING_HOST, host=self.computer, path=_PATH):
            raise ConnectionReset
        if request.method != "POST":
            return HttpReply(status=405, headers=[("Allow", "POST")])
        body = request.body.read_all(_BODY_BYTES_MAX)
        if body is None:
            _take_the_rest(request.body)
            return HttpReply(status=413)
        logon = self._logons.get(request.connection)
        if logon is None:
            logon = self._logons[request.connection] = Logon(self._accounts, secure=secure)
        headers: list[tuple[str, str]] = []
        authorization = request.header("authorization")
        if authorization is not None:
            try:
                token = logon.step(authorization)
            except LogonRefusedError as error:
                log.info("logon refused: %s", error)
                return HttpReply(status=401, headers=logon.offers())
            if token is not None:
                scheme = authorization.partition(" ")[0]
                headers = [("WWW-Authenticate", f"{scheme} {b64encode(token).decode()}")]
        if not logon.done:
            return HttpReply(status=401, headers=headers or logon.offers())
        return self._for_user(request, body, logon, headers, secure=secure)

    def _for_user(
        self,
        request: HttpRequest,
        body: bytes,
        logon: Logon,
        headers: list[tuple[str, str]],
        *,
        secure: bool,
    ) -> HttpReply:
        if not body:  # a client that only logs on
            return HttpReply(headers=headers)
        content_type = request.header("content-type") or ""
        seal = logon.seal
        if is_sealed(content_type) and seal is not None:
            try:
                message = unseal(body, seal, logon.framing)
            except Exception as error:  # pyspnego has many; a broken seal ends the session
                log.info("a sealed message is refused: %s", error)
                return HttpReply(status=400, close=True)
        elif content_type.partition(";")[0].strip().lower() != _SOAP:
            return HttpReply(status=415)
        elif not secure:
            log.info("an unsealed message over HTTP is refused")
            return HttpReply(status=500, close=True)
        else:
            message, seal = body, None
        status, answer = self._soap(message)
        if seal is None:
            kind, answer_body = f"{_SOAP};charset=UTF-8", answer
        else:
            kind = logon.framing.content_type(answer)
            answer_body = seal_message(answer, seal, logon.framing)
        return HttpReply(
            status=status, headers=[*headers, ("Content-Type", kind)], body=answer_body
        )

    def _soap(self, message: bytes) -> tuple[int, bytes]:
        message_id = ""
        try:
            request = parse_request(message)
            message_id = request.message_id
            return 200, self._carry_out(request)
        except WsmanFaultError as error:
            return 500, fault(error, message_id, self.computer)

    def _carry_out(self, request: WsmanRequest) -> bytes:
        fields = {"host": self.computer, "method": self.winrs.label(request)}
        if self._switches.take(FaultName.SESSION_DROP, **fields):
            self.winrs.drop_shell(request.selectors.get("ShellId", ""))
        if self._switches.take(FaultName.PRIVILEGE_LOST, **fields):
            raise WsmanFaultError(WsmanCode.ACCESS_DENIED)
        for name in (FaultName.SLOW_HOST, FaultName.SOAP_DELAY):
            if delay := self._switches.take(name, **fields):
                self._ended.wait(delay.amount)
        answer = self.winrs.answer(request)
        fields["method"] = self.winrs.label(request)
        if self._switches.take(FaultName.LOST_TASK_REPLY, **fields):
            raise ConnectionCut
        return answer


def _take_the_rest(body: BodyReader) -> None:
    """A client that still sends when the connection is closed never sees the refusal."""
    for _ in range(_REST_PIECES_MAX):
        if not body.read(_PIECE_BYTES):
            return
