"""The remote shell of WS-Management: Create, Command, Send, Receive, Signal, Delete.

Shells belong to the host, not to a connection: a client that reconnects goes on with its shell.
Quotas are those of Windows Server: shells, and commands in a shell. A shell that nobody has used
for its idle time is gone at the next look.

Thread model: any thread; a Receive waits on the thread of its connection.
Source: [MS-WSMV] 2.2.4 and 3.1.4.1; winrm/config defaults of Windows Server 2019.
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lab.hyperv_host.winrs_command import Command, CommandLine, Program
from lab.hyperv_host.wsman_faults import WsmanCode, WsmanFaultError
from lab.hyperv_host.wsman_message import SHELL_URI, A, W, WsmanRequest, X, duration_s, reply

SHELLS_MAX = 30
COMMANDS_MAX = 25  # MaxProcessesPerShell
_IDLE_S = 7200.0
_ENVELOPE_OVERHEAD_BYTES = 4096
_CMD_URI = f"{SHELL_URI}/cmd"
_TRANSFER = "http://schemas.xmlsoap.org/ws/2004/09/transfer"
_CREATE, _DELETE = f"{_TRANSFER}/Create", f"{_TRANSFER}/Delete"
_COMMAND, _SEND, _RECEIVE, _SIGNAL = (
    f"{SHELL_URI}/{name}" for name in ("Command", "Send", "Receive", "Signal")
)
_SIGNALS = {f"{SHELL_URI}/signal/{name}" for name in ("terminate", "ctrl_c", "ctrl_break")}
_STREAMS = ("stdout", "stderr")
_KNOWN_OPTIONS = {
    "WINRS_NOPROFILE",
    "WINRS_CODEPAGE",
    "WINRS_CONSOLEMODE_STDIN",
    "WINRS_SKIP_CMD_SHELL",
    "WSMAN_CMDSHELL_OPTION_KEEPALIVE",
}


@dataclass(slots=True, kw_only=True)
class Shell:
    shell_id: str
    idle_s: float
    used_at: float
    commands: dict[str, Command] = field(default_factory=dict)


class Winrs:
    def __init__(self, program: Program, owner: str) -> None:
        self._program = program
        self._owner = owner
        self._lock = threading.Lock()
        self._shells: dict[str, Shell] = {}
        self._ended: list[Command] = []
        self._actions = {
            _CREATE: self._create,
            _COMMAND: self._command,
            _SEND: self._send,
            _RECEIVE: self._receive,
            _SIGNAL: self._signal,
            _DELETE: self._delete,
        }

    @property
    def shell_count(self) -> int:
        return len(self._shells)

    def label(self, request: WsmanRequest) -> str:
        """What the fault switches call this request: its action, and the script of its command."""
        action = request.action.rpartition("/")[2]
        shell = self._shells.get(request.selectors.get("ShellId", ""))
        command = shell and shell.commands.get(_command_id(request.body))
        return f"{action}:{command.label}" if command and command.label else action

    def answer(self, request: WsmanRequest) -> bytes:
        """Raises WsmanFaultError."""
        if request.resource_uri != _CMD_URI:
            raise WsmanFaultError(WsmanCode.RESOURCE_NOT_FOUND, request.resource_uri)
        action = self._actions.get(request.action)
        if action is None:
            raise WsmanFaultError(WsmanCode.ACTION_NOT_SUPPORTED, request.action)
        unknown = request.options.keys() - _KNOWN_OPTIONS
        if unknown:
            raise WsmanFaultError(WsmanCode.INVALID_OPTIONS, sorted(unknown)[0])
        return action(request)

    def close(self) -> None:
        """End every shell and wait for its programs."""
        with self._lock:
            for shell in list(self._shells.values()):
                self._end(shell)
            ended, self._ended = self._ended, []
        for command in ended:
            command.join()

    def drop_shell(self, shell_id: str) -> None:
        """As a restart of the service would: the shell is not there any more."""
        with self._lock:
            shell = self._shells.get(shell_id)
            if shell is not None:
                self._end(shell)

    # ------------------------------------------------------------------ actions

    def _create(self, request: WsmanRequest) -> bytes:
        body = _element(request, "Shell")
        if (_child(body, "InputStreams"), _child(body, "OutputStreams")) != (
            "stdin",
            " ".join(_STREAMS),
        ):
            raise WsmanFaultError(WsmanCode.SCHEMA_VALIDATION, "the streams of a shell")
        idle_text = _child(body, "IdleTimeOut")
        idle_s = duration_s(idle_text) if idle_text else _IDLE_S
        codepage = request.options.get("WINRS_CODEPAGE", "437")
        if not idle_s or not codepage.isdigit():
            raise WsmanFaultError(WsmanCode.INVALID_OPTIONS, idle_text or codepage)
        shell_id = str(uuid.uuid4()).upper()
        with self._lock:
            self._reap()
            if len(self._shells) >= SHELLS_MAX:
                raise WsmanFaultError(WsmanCode.MAX_SHELLS)
            shell = Shell(shell_id=shell_id, idle_s=idle_s, used_at=time.monotonic())
            self._shells[shell_id] = shell
        return reply(request, f"{_CREATE}Response", _created(shell_id), self._described(shell))

    def _described(self, shell: Shell) -> ET.Element:
        element = ET.Element(f"{{{SHELL_URI}}}Shell")
        for name, text in (
            ("ShellId", shell.shell_id),
            ("ResourceUri", _CMD_URI),
            ("Owner", self._owner),
            ("ClientIP", "127.0.0.1"),
            ("IdleTimeOut", f"PT{shell.idle_s:.3f}S"),
            ("InputStreams", "stdin"),
            ("OutputStreams", " ".join(_STREAMS)),
        ):
            ET.SubElement(element, f"{{{SHELL_URI}}}{name}").text = text
        return element

    def _command(self, request: WsmanRequest) -> bytes:
        body = _element(request, "CommandLine")
        text = _child(body, "Command")
        if not text:
            raise WsmanFaultError(WsmanCode.INVALID_PARAMETER, "no command")
        arguments = tuple(e.text or "" for e in body.findall(f"{{{SHELL_URI}}}Arguments"))
        direct = request.options.get("WINRS_SKIP_CMD_SHELL", "FALSE").upper() == "TRUE"
        line = CommandLine(command=text, arguments=arguments, direct=direct)
        command_id = (body.get("CommandId") or str(uuid.uuid4())).upper()
        with self._shell(request) as shell:
            if command_id in shell.commands:
                raise WsmanFaultError(WsmanCode.INVALID_PARAMETER, "the command id is in use")
            if len(shell.commands) >= COMMANDS_MAX:
                raise WsmanFaultError(WsmanCode.MAX_OPERATIONS)
            shell.commands[command_id] = Command(command_id, line, self._program)
        response = ET.Element(f"{{{SHELL_URI}}}CommandResponse")
        ET.SubElement(response, f"{{{SHELL_URI}}}CommandId").text = command_id
        return reply(request, f"{SHELL_URI}/CommandResponse", response)

    def _send(self, request: WsmanRequest) -> bytes:
        body = _element(request, "Send")
        for stream in body.findall(f"{{{SHELL_URI}}}Stream"):
            if stream.get("Name") != "stdin":
                raise WsmanFaultError(WsmanCode.INVALID_PARAMETER, "the stream is not stdin")
            try:
                data = base64.b64decode(stream.text or "", validate=True)
            except binascii.Error as error:
                raise WsmanFaultError(WsmanCode.SCHEMA_VALIDATION, "no base64") from error
            end = stream.get("End", "false").lower() == "true"
            self._find(request, stream.get("CommandId", "")).send(data, end=end)
        response = ET.Element(f"{{{SHELL_URI}}}SendResponse")
        return reply(request, f"{SHELL_URI}/SendResponse", response)

    def _receive(self, request: WsmanRequest) -> bytes:
        body = _element(request, "Receive")
        desired = body.find(f"{{{SHELL_URI}}}DesiredStream")
        if desired is None or set((desired.text or "").split()) - set(_STREAMS):
            raise WsmanFaultError(WsmanCode.INVALID_PARAMETER, "the streams that are desired")
        command = self._find(request, desired.get("CommandId", ""))
        room = (request.envelope_bytes - _ENVELOPE_OVERHEAD_BYTES) * 3 // 4
        output = command.receive(room, request.timeout_s)
        response = ET.Element(f"{{{SHELL_URI}}}ReceiveResponse")
        done = output.exit_code is not None
        for name, data in output.streams:
            named = {"Name": name, "CommandId": command.command_id}
            stream = ET.SubElement(response, f"{{{SHELL_URI}}}Stream", named)
            stream.text = base64.b64encode(data).decode()
        if done:
            for name in _STREAMS:
                named = {"Name": name, "CommandId": command.command_id, "End": "true"}
                ET.SubElement(response, f"{{{SHELL_URI}}}Stream", named)
        state = f"{SHELL_URI}/CommandState/{'Done' if done else 'Running'}"
        named = {"CommandId": command.command_id, "State": state}
        element = ET.SubElement(response, f"{{{SHELL_URI}}}CommandState", named)
        if done:
            ET.SubElement(element, f"{{{SHELL_URI}}}ExitCode").text = str(output.exit_code)
        return reply(request, f"{SHELL_URI}/ReceiveResponse", response)

    def _signal(self, request: WsmanRequest) -> bytes:
        body = _element(request, "Signal")
        code = (_child(body, "Code") or "").lower()
        if code not in _SIGNALS:
            raise WsmanFaultError(WsmanCode.INVALID_PARAMETER, f"the signal {code!r}")
        command = self._find(request, body.get("CommandId", ""))
        command.terminate()
        with self._shell(request) as shell:
            shell.commands.pop(command.command_id, None)
            self._ended = [*(one for one in self._ended if one.running), command]
        response = ET.Element(f"{{{SHELL_URI}}}SignalResponse")
        return reply(request, f"{SHELL_URI}/SignalResponse", response)

    def _delete(self, request: WsmanRequest) -> bytes:
        with self._shell(request) as shell:
            self._end(shell)
        return reply(request, f"{_DELETE}Response")

    # ------------------------------------------------------------------ shells

    @contextmanager
    def _shell(self, request: WsmanRequest) -> Iterator[Shell]:
        """The request's shell, with the lock held. Raises WsmanFaultError: there is none."""
        with self._lock:
            shell_id = request.selectors.get("ShellId")
            if shell_id is None:
                raise WsmanFaultError(WsmanCode.MISSING_SELECTORS, "ShellId")
            self._reap()
            shell = self._shells.get(shell_id)
            if shell is None:
                raise WsmanFaultError(WsmanCode.SHELL_NOT_FOUND)
            shell.used_at = time.monotonic()
            yield shell

    def _find(self, request: WsmanRequest, command_id: str) -> Command:
        with self._shell(request) as shell:
            command = shell.commands.get(command_id.upper())
        if command is None:
            raise WsmanFaultError(WsmanCode.INVALID_PARAMETER, "no such command in the shell")
        return command

    def _reap(self) -> None:
        now = time.monotonic()
        for shell in list(self._shells.values()):
            if now - shell.used_at > shell.idle_s and not any(
                command.running for command in shell.commands.values()
            ):
                self._end(shell)

    def _end(self, shell: Shell) -> None:
        for command in shell.commands.values():
            command.terminate()
            self._ended.append(command)
        self._ended = [command for command in self._ended if command.running]
        del self._shells[shell.shell_id]


def _created(shell_id: str) -> ET.Element:
    created = ET.Element(f"{{{X}}}ResourceCreated")
    ET.SubElement(created, f"{{{A}}}Address").text = "http://localhost/wsman"
    parameters = ET.SubElement(created, f"{{{A}}}ReferenceParameters")
    ET.SubElement(parameters, f"{{{W}}}ResourceURI").text = _CMD_URI
    selectors = ET.SubElement(parameters, f"{{{W}}}SelectorSet")
    ET.SubElement(selectors, f"{{{W}}}Selector", {"Name": "ShellId"}).text = shell_id
    return created


def _element(request: WsmanRequest, name: str) -> ET.Element:
    if request.body is None or request.body.tag != f"{{{SHELL_URI}}}{name}":
        raise WsmanFaultError(WsmanCode.SCHEMA_VALIDATION, f"the body is no {name}")
    return request.body


def _child(element: ET.Element, name: str) -> str:
    return (element.findtext(f"{{{SHELL_URI}}}{name}") or "").strip()


def _command_id(body: ET.Element | None) -> str:
    """The command that a request is about, wherever its kind of body says so."""
    if body is None:
        return ""
    named = [body, *body.iter()]
    return next((one.get("CommandId", "") for one in named if one.get("CommandId")), "").upper()
