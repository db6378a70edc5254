"""The QMP client against a scripted peer."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from appliance.sandbox import qmp
from appliance.sandbox.errors import QmpError
from appliance.sandbox.qmp import QmpClient

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
Answer = Callable[[dict[str, Any]], bytes]


def reply(request: dict[str, Any], **content: Any) -> bytes:
    return json.dumps({"id": request["id"], **content}).encode() + b"\r\n"


@contextmanager
def peer(answer: Answer, greeting: bytes = GREETING) -> Iterator[socket.socket]:
    """Yield the client's end; the other end greets, then answers each request line."""
    client, server = socket.socketpair()

    def serve() -> None:
        with server, server.makefile("rb") as requests:
            try:
                server.sendall(greeting)
                for line in requests:
                    server.sendall(answer(json.loads(line)))
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield client
    finally:
        client.close()
        thread.join()


def test_a_reply_is_found_behind_events_and_late_answers() -> None:
    """What answers nothing of ours is passed over, wherever the stream is cut."""

    def answer(request: dict[str, Any]) -> bytes:
        noise = b'{"event": "RESUME", "data": {}}\r\n{"return": "late", "id": -1}\r\n'
        return noise + reply(request, **{"return": {"echo": request.get("arguments")}})

    with peer(answer) as connection:
        client = QmpClient(connection)
        result = client.execute("screendump", filename="x", some_option=1)
    assert result == {"echo": {"filename": "x", "some-option": 1}}


def test_a_message_may_arrive_byte_by_byte() -> None:
    """Framing is by line, not by what one receive happens to return."""
    client_end, server = socket.socketpair()
    message = GREETING + b'{"return": {}, "id": 1}\n'

    def drip() -> None:
        for position in range(len(message)):
            server.sendall(message[position : position + 1])

    thread = threading.Thread(target=drip)
    thread.start()
    QmpClient(client_end)
    thread.join()
    client_end.close()
    server.close()


def test_an_error_reply_names_the_command_and_the_reason() -> None:
    """QEMU's description reaches the operator."""

    def answer(request: dict[str, Any]) -> bytes:
        if request["execute"] == "qmp_capabilities":
            return reply(request, **{"return": {}})
        return reply(request, error={"class": "GenericError", "desc": "no such device"})

    with peer(answer) as connection:
        client = QmpClient(connection)
        with pytest.raises(QmpError, match="eject: no such device"):
            client.execute("eject")


@pytest.mark.parametrize(
    "greeting", [b"not json\n", b"[]\n", b'{"hello": 1}\n', b"\xff\xfe\n"], ids=repr
)
def test_what_is_not_qmp_is_refused(greeting: bytes) -> None:
    """A peer that speaks something else is an error, not a crash."""
    with peer(lambda request: b"", greeting) as connection, pytest.raises(QmpError):
        QmpClient(connection)


def test_an_endless_message_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory stays bounded whatever the peer sends."""
    monkeypatch.setattr(qmp, "MESSAGE_BYTES_MAX", 1000)
    endless = peer(lambda request: b"", b"x" * 200_000)
    with endless as connection, pytest.raises(QmpError, match="exceeds its limit"):
        QmpClient(connection)


def test_a_silent_or_closed_peer_is_an_error() -> None:
    """A hung QEMU costs the timeout, a dead one nothing."""
    silent, other = socket.socketpair()
    with silent, other, pytest.raises(QmpError, match="no answer"):
        QmpClient(silent, timeout_s=0.05)
    closed, other = socket.socketpair()
    other.close()
    with closed, pytest.raises(QmpError, match="closed"):
        QmpClient(closed)
