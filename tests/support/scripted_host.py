"""A host whose scripts are answered by functions of the test, through a real WinRM conversation."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.winrm_session import Endpoint, Login, Scheme, WinrmSession
from lab.faults import FaultSwitches
from lab.hyperv_host.programs import Programs
from lab.hyperv_host.winrs_command import Pipes
from lab.hyperv_host.wsman_server import WsmanServer

USER, PASSWORD, COMPUTER = "Administrator", "correct-horse", "HV1"

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(Exception):
    """A handler's way to fail as a script does."""

    def __init__(self, code: str, message: str = "", *, wmi_return: int = 0) -> None:
        super().__init__(message or code)
        self.code = code
        self.wmi_return = wmi_return


@dataclass
class ScriptedHost:
    """`calls` are the names of the scripts in the order in which they came."""

    handlers: dict[str, Handler] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    server: WsmanServer | None = None

    def __call__(self, _command: str, pipes: Pipes) -> int:
        request = json.loads(base64.b64decode(pipes.read_all()))
        name = request["name"]
        pipes.label = name
        self.calls.append(name)
        try:
            answer = {"ok": True, "value": self.handlers[name](request["parameters"])}
        except Refusal as refusal:
            answer = {"ok": False, "error": _error(refusal)}
        packed = base64.b64encode(gzip.compress(json.dumps(answer).encode()))
        pipes.write("stderr", b"#< CLIXML\r\n<Objs/>")
        pipes.write("stdout", b"noise\r\n<<holdfast:1:" + packed + b":holdfast>>\r\n")
        return 0 if answer["ok"] else 1

    def endpoint(
        self,
        *,
        login: Login = Login.NTLM,
        scheme: Scheme = Scheme.HTTPS,
        fingerprint: str | None = None,
        password: str = PASSWORD,
    ) -> Endpoint:
        assert self.server is not None
        is_tls = scheme is Scheme.HTTPS
        pin = self.server.fingerprint if fingerprint is None else fingerprint
        return Endpoint(
            address="127.0.0.1",
            port=self.server.https_port if is_tls else self.server.http_port,
            user=USER,
            login=login,
            scheme=scheme,
            fingerprint_sha256=pin if is_tls else "",
            password=lambda: password,
        )


@contextmanager
def scripted_host(
    folder: Path, handlers: dict[str, Handler], switches: FaultSwitches | None = None
) -> Iterator[ScriptedHost]:
    host = ScriptedHost(handlers=dict(handlers))
    host.server = WsmanServer(
        folder,
        Programs(COMPUTER, host),
        computer=COMPUTER,
        user=USER,
        password=PASSWORD,
        switches=switches or FaultSwitches(),
    )
    host.server.start()
    try:
        yield host
    finally:
        host.server.close()


@contextmanager
def session_with(host: ScriptedHost, **how: Any) -> Iterator[HostSession]:
    """A client that does not sleep between its tries."""
    session = HostSession(
        host.endpoint(**how), patience=Patience(wait=lambda _s: None), open_shell=WinrmSession
    )
    try:
        yield session
    finally:
        session.close()


def _error(refusal: Refusal) -> dict[str, Any]:
    return {
        "code": refusal.code,
        "wmi_return": refusal.wmi_return,
        "type": "System.InvalidOperationException",
        "hresult": -2146233079,
        "message": str(refusal),
        "category": "OperationStopped",
        "id": str(refusal),
        "line": 1,
    }
