"""The practice host's WinRM against two clients that are not ours, and against what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from pypsrp.shell import Process, SignalCode, WinRS
from pypsrp.wsman import WSMan
from winrm.exceptions import InvalidCredentialsError, WinRMOperationTimeoutError, WSManFaultError

from lab.faults import FaultName, FaultSwitches
from lab.hyperv_host.winrs import SHELLS_MAX
from lab.hyperv_host.wsman_faults import WsmanCode
from lab.hyperv_host.wsman_message import ENVELOPE_BYTES_MAX
from lab.hyperv_host.wsman_server import WsmanServer
from tests.support.lab_hyperv import (
    PASSWORD,
    SHELL,
    SHELL_BODY,
    USER,
    client,
    envelope,
    fault_code,
    post,
    winrm_server,
)


@pytest.fixture
def switches() -> FaultSwitches:
    return FaultSwitches()


@pytest.fixture
def server(tmp_path: Path, switches: FaultSwitches) -> Iterator[WsmanServer]:
    with winrm_server(tmp_path, switches=switches) as started:
        yield started


@pytest.mark.parametrize(("transport", "secure"), [("ntlm", False), ("ntlm", True), ("ssl", True)])
def test_pywinrm_runs_commands(
    server: WsmanServer, tmp_path: Path, transport: str, secure: bool
) -> None:
    """Sealed over HTTP, NTLM and Basic over HTTPS: stdin in pieces, long output, exit codes."""
    winrm = client(server, tmp_path, transport, secure=secure)
    shell = winrm.open_shell(codepage=65001)
    command = winrm.run_command(shell, "sort", console_mode_stdin=False, skip_cmd_shell=True)
    winrm.send_command_input(shell, command, b"b\n")
    winrm.send_command_input(shell, command, b"a\n" * 100_000, end=True)
    output, errors, code = winrm.get_command_output(shell, command)
    assert (len(output), output[-3:], errors, code) == (3 * 100_001, b"b\r\n", b"", 0)
    winrm.cleanup_command(shell, command)
    command = winrm.run_command(shell, "no-such-program")
    output, errors, code = winrm.get_command_output(shell, command)
    assert (output, code) == (b"", 1) and b"is not recognized" in errors
    winrm.close_shell(shell)
    assert server.winrs.shell_count == 0


@pytest.mark.parametrize(
    ("method", "secure"), [("ntlm", False), ("negotiate", False), ("basic", True)]
)
def test_pypsrp_runs_processes(server: WsmanServer, method: str, secure: bool) -> None:
    """The shells of the other client, whose NTLM comes bare or wrapped in SPNEGO."""
    wsman = WSMan(
        "127.0.0.1",
        port=server.https_port if secure else server.http_port,
        ssl=secure,
        auth=method,
        encryption="auto" if secure else "always",
        cert_validation=False,
        username=USER,
        password=PASSWORD,
        operation_timeout=1,
        no_proxy=True,
    )
    with wsman, WinRS(wsman) as shell:
        process = Process(shell, "sort")
        process.begin_invoke()
        process.send(b"b\na\n", end=True)
        process.end_invoke()
        assert (process.stdout, process.rc) == (b"a\r\nb\r\n", 0)
        process = Process(shell, "exit", ["7"])
        process.invoke()
        process.signal(SignalCode.TERMINATE)
        assert process.rc == 7


def test_a_wrong_password_is_refused(server: WsmanServer, tmp_path: Path) -> None:
    winrm = client(server, tmp_path)
    winrm.transport.password = "wrong"
    with pytest.raises(InvalidCredentialsError):
        winrm.open_shell()


def test_basic_is_not_offered_without_tls(server: WsmanServer) -> None:
    """The password would travel in clear text."""
    answer = requests.post(
        f"http://127.0.0.1:{server.http_port}/wsman", data="", auth=(USER, PASSWORD), timeout=20
    )
    assert answer.status_code == 401
    assert "Basic" not in answer.headers["WWW-Authenticate"]


def test_an_unsealed_message_over_http_is_refused(server: WsmanServer, tmp_path: Path) -> None:
    """Also from who has logged on."""
    winrm = client(server, tmp_path)
    winrm.transport.message_encryption = "never"
    with pytest.raises(Exception, match="500"):
        winrm.open_shell()
    assert server.winrs.shell_count == 0


def test_receive_times_out_as_a_windows_server_does(server: WsmanServer, tmp_path: Path) -> None:
    """A program that says nothing: the fault whose code makes clients poll again."""
    winrm = client(server, tmp_path)
    shell = winrm.open_shell()
    command = winrm.run_command(shell, "sort")
    with pytest.raises(WinRMOperationTimeoutError):
        winrm.get_command_output_raw(shell, command)
    winrm.cleanup_command(shell, command)  # it still waits for its input
    winrm.close_shell(shell)


def test_shells_are_limited_and_end_with_the_host(server: WsmanServer, tmp_path: Path) -> None:
    winrm = client(server, tmp_path)
    for _ in range(SHELLS_MAX):
        winrm.open_shell()
    with pytest.raises(WSManFaultError) as refused:
        winrm.open_shell()
    assert refused.value.wsman_fault_code == 2150859173


def test_a_dropped_session_takes_the_shell(
    server: WsmanServer, tmp_path: Path, switches: FaultSwitches
) -> None:
    winrm = client(server, tmp_path)
    shell = winrm.open_shell()
    switches.arm(FaultName.SESSION_DROP, method="Command")
    with pytest.raises(WSManFaultError) as gone:
        winrm.run_command(shell, "hostname")
    assert gone.value.wsman_fault_code == 2150858843


def test_a_lost_reply_leaves_what_was_done(
    server: WsmanServer, tmp_path: Path, switches: FaultSwitches
) -> None:
    switches.arm(FaultName.LOST_TASK_REPLY, method="Create")
    with pytest.raises(requests.ConnectionError):
        client(server, tmp_path).open_shell()
    assert server.winrs.shell_count == 1


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("<not xml", WsmanCode.INVALID_XML),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + envelope(), WsmanCode.INVALID_XML),
        ("<a/>", WsmanCode.SCHEMA_VALIDATION),
        (envelope(action="urn:other"), WsmanCode.ACTION_NOT_SUPPORTED),
        (envelope(resource="urn:other"), WsmanCode.RESOURCE_NOT_FOUND),
        (envelope(timeout="20"), WsmanCode.INVALID_TIMEOUT),
        (envelope(timeout="PT0S"), WsmanCode.INVALID_TIMEOUT),
        (envelope(action=f"{SHELL}/Command"), WsmanCode.SCHEMA_VALIDATION),
        (
            envelope(more='<x:y xmlns:x="urn:x" s:mustUnderstand="true"/>'),
            WsmanCode.MUST_UNDERSTAND,
        ),
        (envelope(body=""), WsmanCode.SCHEMA_VALIDATION),
        (envelope(body=SHELL_BODY * 2), WsmanCode.INVALID_SOAP_BODY),
        (
            envelope(
                action=f"{SHELL}/Command",
                body=f'<r:CommandLine xmlns:r="{SHELL}"><r:Command>a</r:Command></r:CommandLine>',
            ),
            WsmanCode.MISSING_SELECTORS,
        ),
        (
            envelope(
                action=f"{SHELL}/Command",
                shell_id="0E7D9B6C-0000-0000-0000-000000000000",
                body=f'<r:CommandLine xmlns:r="{SHELL}"><r:Command>a</r:Command></r:CommandLine>',
            ),
            WsmanCode.SHELL_NOT_FOUND,
        ),
        (
            envelope(more='<w:OptionSet><w:Option Name="WINRS_MAGIC">1</w:Option></w:OptionSet>'),
            WsmanCode.INVALID_OPTIONS,
        ),
    ],
)
def test_what_the_protocol_does_not_allow_gets_its_fault(
    server: WsmanServer, tmp_path: Path, message: str, code: WsmanCode
) -> None:
    """One fault each, with the code that Windows clients look at; nothing is created."""
    assert fault_code(post(server, tmp_path, message)) == code.number
    assert server.winrs.shell_count == 0


def test_an_envelope_above_the_limit_is_refused(server: WsmanServer, tmp_path: Path) -> None:
    message = envelope(more=f"<a:From>{'x' * ENVELOPE_BYTES_MAX}</a:From>")
    assert fault_code(post(server, tmp_path, message)) == WsmanCode.ENCODING_LIMIT.number
    assert post(server, tmp_path, message + " " * 8192).status_code == 413


def test_a_reply_keeps_to_the_size_the_client_takes(server: WsmanServer, tmp_path: Path) -> None:
    """A client with small envelopes gets long output in pieces that fit."""
    small = "<w:MaxEnvelopeSize>16384</w:MaxEnvelopeSize>"
    made = post(server, tmp_path, envelope())
    shell = made.text.partition('Name="ShellId">')[2].partition("<")[0]
    options = '<w:OptionSet><w:Option Name="WINRS_SKIP_CMD_SHELL">TRUE</w:Option></w:OptionSet>'
    line = (
        f'<r:CommandLine xmlns:r="{SHELL}"><r:Command>echo</r:Command>'
        f"<r:Arguments>{'y' * 30_000}</r:Arguments></r:CommandLine>"
    )
    ran = post(server, tmp_path, envelope(f"{SHELL}/Command", line, shell_id=shell, more=options))
    command = ran.text.partition("CommandId>")[2].partition("<")[0]
    body = (
        f'<r:Receive xmlns:r="{SHELL}"><r:DesiredStream CommandId="{command}">stdout stderr'
        "</r:DesiredStream></r:Receive>"
    )
    replies: list[str] = []
    while not replies or "CommandState/Done" not in replies[-1]:
        got = post(server, tmp_path, envelope(f"{SHELL}/Receive", body, shell_id=shell, more=small))
        replies.append(got.text)
    assert len(replies) > 2
    assert max(len(one) for one in replies) <= 16384
