"""The practice host's PowerShell: it knows the product's scripts by name and performs their effect.

A script comes as the product sends it to a real host: the bootstrap as the encoded command, and on
stdin base64 of JSON with the script's text and its parameters. The text is not run; its line
`# Script: NAME` says which it is, and a text that says nothing, two things, or something unknown is
refused, as are parameters other than the script's. The answer is the bootstrap's.

Thread model: the thread of the command. Source: hyperv/scripts/CONTRACT.md.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from subprocess import SubprocessError
from typing import Any

from lab.esx.errors import HostError
from lab.faults import FaultName, FaultSwitches
from lab.hyperv_host.errors import HypervError
from lab.hyperv_host.winrs_command import Pipes

log = logging.getLogger(__name__)

Document = dict[str, Any]
Handler = Callable[["Parameters"], Document]
_REQUEST_BYTES_MAX = 1 << 20
_NAME = re.compile(r"^# Script: (\S+)\s*$", re.MULTILINE)
_BOOTSTRAP = (
    "[Console]::In.ReadToEnd()",
    "<<holdfast:1:",
    "[ScriptBlock]::Create($request.script)",
)
_INVALID_OPERATION = -2146233079


class ScriptStop(Exception):
    """What `Stop-Script` throws in a script."""

    def __init__(self, code: str, message: str, wmi_return: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.wmi_return = wmi_return


class Parameters:
    """The parameters of one call; a wrong type is refused as a cast in PowerShell would be."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        return str(self._typed(name, str))

    def number(self, name: str) -> int:
        return int(self._typed(name, int))

    def flag(self, name: str) -> bool:
        return bool(self._typed(name, bool))

    def record(self, name: str) -> Parameters:
        return Parameters(self._typed(name, dict))

    def records(self, name: str) -> list[Parameters]:
        return [Parameters(one) for one in self._typed(name, list)]

    def texts(self, name: str) -> list[str]:
        return [str(one) for one in self._typed(name, list)]

    def has(self, name: str) -> bool:
        return self._values.get(name) is not None

    def _typed(self, name: str, kind: type) -> Any:
        value = self._values.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise HypervError(f"Cannot convert value of '{name}' to type {kind.__name__}.")
        return value


@dataclass(frozen=True, slots=True)
class Script:
    handler: Handler
    parameters: frozenset[str]


class ScriptHost:
    """`scripts` by name."""

    def __init__(self, scripts: Mapping[str, Script], faults: FaultSwitches, computer: str) -> None:
        self._scripts = scripts
        self._faults = faults
        self._computer = computer

    def __call__(self, command: str, pipes: Pipes) -> int:
        """What powershell.exe does with its decoded command; returns the exit code."""
        missing = [mark for mark in _BOOTSTRAP if mark not in command]
        if missing:
            pipes.write("stderr", b"This host runs nothing but the scripts it knows.\r\n")
            return 1
        stdin = pipes.read_all()
        try:
            document = {"ok": True, "value": self._run(stdin, pipes)}
        except (ScriptStop, HypervError) as error:
            document = {"ok": False, "error": _described(error)}
        packed = gzip.compress(json.dumps(document).encode())
        line = b"<<holdfast:1:" + base64.b64encode(packed) + b":holdfast>>\r\n"
        pipes.write("stdout", line)
        return 0 if document["ok"] else 1

    def _run(self, stdin: bytes, pipes: Pipes) -> Document:
        name, parameters = _request(stdin)
        pipes.label = name
        script = self._scripts.get(name)
        if script is None:
            raise HypervError(f"this host does not know the script {name!r}")
        if parameters.keys() != script.parameters:
            odd = sorted(parameters.keys() ^ script.parameters)
            raise HypervError(f"{name}: parameters that are missing or too many: {', '.join(odd)}")
        if self._faults.take(FaultName.SCRIPT_FAILURE, method=name, host=self._computer):
            raise HypervError("The operation could not be completed. (0x80004005)")
        try:
            return script.handler(Parameters(parameters))
        except (OSError, LookupError, ValueError, HostError, SubprocessError) as error:
            log.warning("the script %s failed", name, exc_info=True)
            raise HypervError(f"{type(error).__name__}: {error}") from error


def _request(stdin: bytes) -> tuple[str, Mapping[str, Any]]:
    """Raises HypervError."""
    try:
        data = base64.b64decode(stdin.strip(), validate=True)
        if len(data) > _REQUEST_BYTES_MAX:
            raise HypervError(f"a request of {len(data)} bytes")
        document = json.loads(data)
        text, parameters = document["script"], document["parameters"]
        names = _NAME.findall(text)
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise HypervError(f"the request cannot be read: {error}") from error
    if len(names) != 1 or document.get("name", names[0]) != names[0]:
        raise HypervError(f"the script calls itself {names}")
    if not isinstance(parameters, dict):
        raise HypervError("the parameters are not an object")
    return names[0], parameters


def _described(error: ScriptStop | HypervError) -> Document:
    described = {"message": str(error), "line": 1, "id": "", "category": "OperationStopped"}
    if isinstance(error, ScriptStop):
        return described | {
            "code": error.code,
            "wmi_return": error.wmi_return,
            "type": "System.InvalidOperationException",
            "hresult": _INVALID_OPERATION,
        }
    return described | {
        "code": "",
        "wmi_return": 0,
        "type": "Microsoft.HyperV.PowerShell.VirtualizationException",
        "hresult": error.hresult,
    }
