"""A call as bytes: the request that goes into stdin, and the answer that comes out of stdout.

Invariants: the command line is the same for every call; data travels as JSON only. Every length is
bounded before memory is allocated for it.

Thread model: pure functions. Source: `scripts/CONTRACT.md`.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from hyperv.errors import AccessError, GoneError, ProtocolError, ScriptError
from hyperv.script_types import Answer

PROTOCOL = 1
PROGRAM = "powershell.exe"
REQUEST_LIMIT_BYTES = 1 << 20
ANSWER_LIMIT_BYTES = 64 << 20
STDOUT_LIMIT_BYTES = 96 << 20
_BEGIN = b"<<holdfast:1:"
_END = b":holdfast>>"
_E_ACCESSDENIED = (-2147024891, 0x80070005)
_WMI_ACCESS_DENIED = 32769
_GONE = frozenset({"vm-not-found", "checkpoint-not-found", "disk-not-found", "volume-not-found"})
_QUOTED_CHARS = 2000

AnswerT = TypeVar("AnswerT", bound=Answer)


@cache
def script(name: str) -> str:
    """The text that is sent for a script. Raises ValueError: there is none of this name."""
    folder = files("hyperv") / "scripts"
    if not name.isidentifier() or name in ("common", "bootstrap"):
        raise ValueError(f"not a script: {name!r}")
    common = (folder / "common.ps1").read_text(encoding="utf-8")
    return common + "\n" + (folder / f"{name}.ps1").read_text(encoding="utf-8")


@cache
def arguments() -> tuple[str, ...]:
    """The arguments of `PROGRAM`, the same for every call."""
    bootstrap = (files("hyperv") / "scripts" / "bootstrap.ps1").read_text(encoding="utf-8")
    encoded = base64.b64encode(bootstrap.encode("utf-16le")).decode()
    plain = ("-NoProfile", "-NonInteractive", "-ExecutionPolicy", "Bypass", "-EncodedCommand")
    return (*plain, encoded)


def request(name: str, parameters: Mapping[str, Any]) -> bytes:
    """What goes into stdin. Raises ProtocolError: too large."""
    document = {
        "protocol": PROTOCOL,
        "name": name,
        "script": script(name),
        "parameters": dict(parameters),
    }
    text = json.dumps(document, ensure_ascii=True).encode()
    if len(text) > REQUEST_LIMIT_BYTES:
        raise ProtocolError(f"{name}: the request has {len(text)} bytes")
    return base64.b64encode(text)


def parse_answer(name: str, stdout: bytes, kind: type[AnswerT]) -> AnswerT:
    """Return the value of an answer.

    Raises:
        ScriptError (GoneError, AccessError): the script says that it failed.
        ProtocolError: no answer, or not an agreed one.
    """
    document = _document(name, stdout)
    if document.get("ok") is not True:
        _raise_for(name, document.get("error"))
    try:
        return kind.model_validate(document.get("value"))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ProtocolError(f"{name}: answer, {where or 'value'}: {first['msg']}") from None


def _document(name: str, stdout: bytes) -> dict[str, Any]:
    begin, end = stdout.find(_BEGIN), stdout.rfind(_END)
    if begin < 0 or end < begin:
        raise ProtocolError(f"{name}: no answer in {len(stdout)} bytes of output")
    try:
        packed = base64.b64decode(stdout[begin + len(_BEGIN) : end], validate=True)
        unpacking = zlib.decompressobj(wbits=31)
        text = unpacking.decompress(packed, ANSWER_LIMIT_BYTES)
        if unpacking.unconsumed_tail or not unpacking.eof:
            raise ProtocolError(f"{name}: the answer is cut off or larger than allowed")
        document = json.loads(text)
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise ProtocolError(f"{name}: the answer cannot be decoded ({error})") from None
    if not isinstance(document, dict):
        raise ProtocolError(f"{name}: the answer is no object")
    return document


def _raise_for(name: str, found: object) -> NoReturn:
    if not isinstance(found, dict):
        raise ProtocolError(f"{name}: neither a value nor an error")
    code, message = found.get("code"), found.get("message")
    wmi_return, hresult = found.get("wmi_return"), found.get("hresult")
    if not isinstance(code, str) or not isinstance(message, str):
        raise ProtocolError(f"{name}: an error without code or message")
    number = wmi_return if isinstance(wmi_return, int) else 0
    words = f"{name}: " + (f"[{code}] " if code else "") + message[:_QUOTED_CHARS]
    if number:
        words += f" (returned {number})"
    kind: type[ScriptError] = ScriptError
    if code in _GONE:
        kind = GoneError
    elif number == _WMI_ACCESS_DENIED or hresult in _E_ACCESSDENIED:
        kind = AccessError
    raise kind(words, reason=code, wmi_return=number)
