"""A practice Hyper-V host's WinRM alone, and clients that are not ours to talk to it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from winrm.protocol import Protocol

from lab.faults import FaultSwitches
from lab.hyperv_host.programs import Programs
from lab.hyperv_host.winrs_command import Pipes
from lab.hyperv_host.wsman_server import WsmanServer

USER, PASSWORD, COMPUTER = "Administrator", "correct-horse", "HV1"
SHELL = "http://schemas.microsoft.com/wbem/wsman/1/windows/shell"
CREATE = "http://schemas.xmlsoap.org/ws/2004/09/transfer/Create"
SHELL_BODY = (
    f'<rsp:Shell xmlns:rsp="{SHELL}"><rsp:InputStreams>stdin</rsp:InputStreams>'
    "<rsp:OutputStreams>stdout stderr</rsp:OutputStreams></rsp:Shell>"
)


def echoing_powershell(command: str, pipes: Pipes) -> int:
    pipes.write("stdout", command.encode())
    return 0


@contextmanager
def winrm_server(folder: Path, *, switches: FaultSwitches | None = None) -> Iterator[WsmanServer]:
    server = WsmanServer(
        folder,
        Programs(COMPUTER, echoing_powershell),
        computer=COMPUTER,
        user=USER,
        password=PASSWORD,
        switches=switches or FaultSwitches(),
    )
    server.start()
    try:
        yield server
    finally:
        server.close()


def client(
    server: WsmanServer, folder: Path, transport: str = "ntlm", *, secure: bool = False
) -> Protocol:
    """pywinrm; the certificate of the server is verified where there is one."""
    authority = folder / "authority.pem"
    authority.write_text(server.certificate_pem)
    port = server.https_port if secure else server.http_port
    return Protocol(
        endpoint=f"{'https' if secure else 'http'}://127.0.0.1:{port}/wsman",
        transport=transport,
        username=USER,
        password=PASSWORD,
        ca_trust_path=str(authority),
        proxy=None,
        operation_timeout_sec=1,
        read_timeout_sec=20,
    )


def envelope(
    action: str = CREATE,
    body: str = SHELL_BODY,
    *,
    shell_id: str = "",
    resource: str = f"{SHELL}/cmd",
    timeout: str = "PT1S",
    more: str = "",
) -> str:
    selector = (
        f'<w:SelectorSet><w:Selector Name="ShellId">{shell_id}</w:Selector></w:SelectorSet>'
        if shell_id
        else ""
    )
    return (
        '<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope"'
        ' xmlns:a="http://schemas.xmlsoap.org/ws/2004/08/addressing"'
        ' xmlns:w="http://schemas.dmtf.org/wbem/wsman/1/wsman.xsd"><s:Header>'
        "<a:To>http://127.0.0.1/wsman</a:To><a:ReplyTo><a:Address>"
        "http://schemas.xmlsoap.org/ws/2004/08/addressing/role/anonymous</a:Address></a:ReplyTo>"
        f"<a:MessageID>uuid:{uuid.uuid4()}</a:MessageID><a:Action>{action}</a:Action>"
        f"<w:ResourceURI>{resource}</w:ResourceURI>"
        f"<w:OperationTimeout>{timeout}</w:OperationTimeout>{selector}{more}"
        f"</s:Header><s:Body>{body}</s:Body></s:Envelope>"
    )


def post(server: WsmanServer, folder: Path, message: str | bytes) -> requests.Response:
    """One request with Basic over TLS, as it is."""
    authority = folder / "authority.pem"
    authority.write_text(server.certificate_pem)
    return requests.post(
        f"https://127.0.0.1:{server.https_port}/wsman",
        data=message,
        auth=(USER, PASSWORD),
        verify=str(authority),
        headers={"Content-Type": "application/soap+xml;charset=UTF-8"},
        timeout=20,
    )


def fault_code(response: requests.Response) -> int:
    """The code of a fault; the reply must be one."""
    assert response.status_code == 500, response.text
    _, found, rest = response.text.partition('Code="')
    assert found, response.text
    return int(rest.partition('"')[0])
