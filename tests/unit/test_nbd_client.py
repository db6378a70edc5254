"""The NBD client against servers that lie: whatever they send, it neither hangs nor overruns."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from struct import pack, unpack

import pytest

from appliance.sources.errors import NbdError
from appliance.sources.nbd_client import NbdDevice

SIZE = 1 << 20
Answer = Callable[[int, int, int, int], bytes]
"""(type, cookie, offset, length) -> bytes to send."""


def option_reply(option: int, kind: int, data: bytes = b"") -> bytes:
    return pack(">QIII", 0x0003E889045565A9, option, kind, len(data)) + data


def chunk(kind: int, cookie: int, payload: bytes, *, last: bool = True) -> bytes:
    return pack(">IHHQI", 0x668E33EF, int(last), kind, cookie, len(payload)) + payload


def receive(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def serve(sock: socket.socket, answer: Answer) -> None:
    """Negotiate correctly, then answer each request with whatever `answer` makes."""
    with sock:
        try:
            sock.sendall(b"NBDMAGICIHAVEOPT\0\3")
            receive(sock, 4)
            while True:
                _, option, length = unpack(">QII", receive(sock, 16))
                receive(sock, length)
                if option == 10:
                    sock.sendall(option_reply(10, 4, pack(">I", 7) + b"base:allocation"))
                if option == 7:
                    sock.sendall(option_reply(7, 3, pack(">HQH", 0, SIZE, 1 | 1 << 6)))
                sock.sendall(option_reply(option, 1))
                if option == 7:
                    break
            while True:
                _, _, kind, cookie, offset, length = unpack(">IHHQQI", receive(sock, 28))
                if kind == 1:
                    receive(sock, length)
                sock.sendall(answer(kind, cookie, offset, length))
        except (EOFError, OSError):
            return


def device(answer: Answer) -> NbdDevice:
    ours, theirs = socket.socketpair()
    threading.Thread(target=serve, args=(theirs, answer), daemon=True).start()
    return NbdDevice([ours])


def data(cookie: int, offset: int, payload: bytes, *, last: bool = True) -> bytes:
    return chunk(1, cookie, pack(">Q", offset) + payload, last=last)


def test_data_holes_and_errors_of_a_correct_server_are_understood() -> None:
    """Chunks may come in any order and size; an error leaves the connection usable."""

    def answer(kind: int, cookie: int, offset: int, length: int) -> bytes:
        if offset == 4096:
            return chunk(0x8001, cookie, pack(">IH", 5, 4) + b"disk")
        half = length // 2
        hole = chunk(2, cookie, pack(">QI", offset + half, length - half), last=False)
        return hole + data(cookie, offset, b"x" * half)

    disk = device(answer)
    assert disk.size_bytes == SIZE
    for _ in range(2):
        assert disk.read_at(0, 1000) == b"x" * 500 + bytes(500)
        with pytest.raises(NbdError, match="disk") as failure:
            disk.read_at(4096, 8)
        assert failure.value.number == 5
    disk.close()


@pytest.mark.parametrize(
    "answer",
    [
        lambda kind, cookie, at, n: data(cookie, at, b"x" * (n + 1)),  # longer than asked
        lambda kind, cookie, at, n: data(cookie, at + 1, b"x" * n),  # outside of the request
        lambda kind, cookie, at, n: data(cookie, at - 1, b"x"),
        lambda kind, cookie, at, n: data(cookie, at, b"x" * (n - 1)),  # a part is missing
        lambda kind, cookie, at, n: data(cookie + 9, at, b"x" * n),  # nobody asked
        lambda kind, cookie, at, n: chunk(1, cookie, b""),
        lambda kind, cookie, at, n: chunk(2, cookie, pack(">QI", at, 0xFFFF_FFFF)),
        lambda kind, cookie, at, n: chunk(2, cookie, pack(">QI", at, 0)),
        lambda kind, cookie, at, n: chunk(0x8001, cookie, b"")[:-4] + b"\xff\xff\xff\xff",
        lambda kind, cookie, at, n: chunk(0, cookie, b""),  # done, without any data
        lambda kind, cookie, at, n: chunk(77, cookie, b"abc"),
        lambda kind, cookie, at, n: pack(">IIQ", 0x67446698, 5, cookie),
        lambda kind, cookie, at, n: b"garbage that is no reply at all",
    ],
)
def test_a_malformed_answer_to_a_read_is_an_error(answer: Answer) -> None:
    """Lengths are checked before anything is read; the connection is not used again."""
    disk = device(answer)
    with pytest.raises(NbdError):
        disk.read_at(8192, 4096)
    disk.close()


@pytest.mark.parametrize(
    "payload",
    [pack(">I", 7), pack(">III", 7, 0, 0), bytes(9), bytes(3)],
    ids=["no extents", "empty extent", "odd length", "short"],
)
def test_a_malformed_block_status_is_an_error(payload: bytes) -> None:
    """An answer without progress must not become an endless loop in the caller."""
    disk = device(lambda kind, cookie, at, n: chunk(5, cookie, payload))
    with pytest.raises(NbdError):
        disk.map_extents(0, SIZE)
    disk.close()


def test_a_block_status_may_stop_short_or_run_past_the_request() -> None:
    """It is clipped to what was asked, and equal neighbours are joined."""
    states = pack(">IIIIIII", 7, 4096, 3, 4096, 2, 1 << 30, 0)
    disk = device(lambda kind, cookie, at, n: chunk(5, cookie, states))
    mapped = disk.map_extents(0, 10_000)
    assert [(m.offset, m.length, m.kind.value) for m in mapped] == [
        (0, 8192, "zero"),
        (8192, 1808, "data"),
    ]
    disk.close()


def test_a_server_that_goes_away_is_an_error_for_every_later_call() -> None:
    """No call waits for a connection that will not come back."""
    ours, theirs = socket.socketpair()

    def answer(kind: int, cookie: int, offset: int, length: int) -> bytes:
        theirs.close()
        return b""

    threading.Thread(target=serve, args=(theirs, answer), daemon=True).start()
    disk = NbdDevice([ours])
    for _ in range(3):
        with pytest.raises(NbdError):
            disk.read_at(0, 512)
    disk.close()


@pytest.mark.parametrize("greeting", [b"", b"NBDMAGIC", bytes(18), b"NBDMAGICIHAVEOPT\0\0"])
def test_a_server_of_another_kind_is_refused(greeting: bytes) -> None:
    """Not NBD, old style, or gone in the middle of the greeting."""
    ours, theirs = socket.socketpair()
    theirs.sendall(greeting)
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(NbdError):
        NbdDevice([ours])
    theirs.close()
