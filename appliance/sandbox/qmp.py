"""A synchronous client of the QEMU Machine Protocol over a connected socket.

Place in the data path: beside it; starts nothing, only talks to a QEMU that `machine` started.
Invariants: one command is outstanding at a time; a message is at most `MESSAGE_BYTES_MAX` long,
whatever the peer sends; events are read and dropped, because nothing here waits for one.
Thread model: any thread may call `execute`; calls queue on a lock.
Source: QEMU docs/interop/qmp-spec.rst (greeting, capabilities negotiation, responses, events).
"""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

from appliance.sandbox.errors import QmpError

MESSAGE_BYTES_MAX = 1 << 20
_REPLY_TIMEOUT_S = 20.0  # TCG on a busy machine answered a screendump within 1 s


class QmpClient:
    """Owns `connection`; the constructor negotiates capabilities."""

    def __init__(self, connection: socket.socket, *, timeout_s: float = _REPLY_TIMEOUT_S) -> None:
        self._socket = connection
        self._socket.settimeout(timeout_s)
        self._buffer = bytearray()
        self._lock = threading.Lock()
        self._last_id = 0
        greeting = self._receive()
        if "QMP" not in greeting:
            raise QmpError("the peer did not greet as a QMP server")
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Return the command's `return` value; underscores in argument names become dashes.

        Raises:
            QmpError: QEMU reported an error, closed the connection or did not answer in time.
        """
        with self._lock:
            self._last_id += 1
            request: dict[str, Any] = {"execute": command, "id": self._last_id}
            if arguments:
                request["arguments"] = {
                    name.replace("_", "-"): value for name, value in arguments.items()
                }
            self._send(json.dumps(request).encode() + b"\n", command)
            return self._reply_to(self._last_id, command)

    def close(self) -> None:
        self._socket.close()

    def _send(self, message: bytes, command: str) -> None:
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise QmpError(f"cannot send {command}: {error}") from error

    def _reply_to(self, request_id: int, command: str) -> Any:
        while True:
            message = self._receive()
            if message.get("id") != request_id:
                continue  # an event, or the late answer to a command that timed out
            if "error" in message:
                raise QmpError(f"{command}: {_description(message['error'])}")
            return message.get("return")

    def _receive(self) -> dict[str, Any]:
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MESSAGE_BYTES_MAX:
                raise QmpError("a QMP message exceeds its limit")
            try:
                data = self._socket.recv(64 * 1024)
            except OSError as error:
                raise QmpError(f"no answer over QMP: {error}") from error
            if not data:
                raise QmpError("QEMU closed the QMP connection")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return _parse(line)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise QmpError("a QMP message is not JSON") from error
    if not isinstance(message, dict):
        raise QmpError("a QMP message is not an object")
    return message


def _description(error: object) -> str:
    return str(error.get("desc", error)) if isinstance(error, dict) else str(error)
