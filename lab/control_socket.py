"""The lab's control socket: one JSON document in, one out, per connection, on a Unix socket.

Only who may enter the 0700 folder it is in can connect. Commands are added by name; a command
takes and returns a JSON object. Thread model: one thread accepts, one per connection answers.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

REQUEST_LIMIT_BYTES = 1 << 20
_REPLY_LIMIT_BYTES = 16 << 20
_TIMEOUT_S = 60.0

Document = dict[str, Any]
Command = Callable[[Mapping[str, Any]], Document]


class ControlError(Exception):
    """The lab does not answer, or has refused the command; the message says why."""


class ControlServer:
    def __init__(self, path: Path) -> None:
        self._commands: dict[str, Command] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        self._socket.listen(16)
        self._thread = threading.Thread(target=self._accept, name="lab-control")
        self._answering: set[threading.Thread] = set()

    def add(self, name: str, command: Command) -> None:
        """A ValueError that the command raises is sent to the caller as a refusal."""
        self._commands[name] = command

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop accepting and wait for the answers that are under way. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join()
        for thread in list(self._answering):
            thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _peer = self._socket.accept()
            except OSError:
                return
            connection.settimeout(_TIMEOUT_S)
            thread = threading.Thread(target=self._serve, args=(connection,), name="lab-answer")
            self._answering.add(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            with contextlib.suppress(OSError):
                reply = self._answer(_receive(connection, REQUEST_LIMIT_BYTES))
                connection.sendall(json.dumps(reply).encode())
            self._answering.discard(threading.current_thread())

    def _answer(self, request: bytes) -> Document:
        try:
            document = json.loads(request)
            command = self._commands.get(document["command"])
            if command is None:
                return {"error": f"the lab knows no command {document['command']!r}"}
            return {"result": command(document.get("arguments") or {})}
        except (ValueError, KeyError, TypeError) as error:
            return {"error": str(error) or type(error).__name__}


def ask(path: Path, command: str, **arguments: Any) -> Document:
    """Send a command to a running lab and return its answer. Raises ControlError."""
    request = json.dumps({"command": command, "arguments": arguments}).encode()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.connect(str(path))
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            reply = json.loads(_receive(connection, _REPLY_LIMIT_BYTES))
    except (OSError, ValueError) as error:
        raise ControlError(f"the lab does not answer: {error}") from error
    if "error" in reply:
        raise ControlError(str(reply["error"]))
    result: Document = reply["result"]
    return result


def _receive(connection: socket.socket, limit_bytes: int) -> bytes:
    received = bytearray()
    while data := connection.recv(1 << 16):
        received += data
        if len(received) > limit_bytes:
            raise OSError("the message is too long")
    return bytes(received)
