"""Negotiation under fire: whatever arrives, no traceback, bounded answers, others are served."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.exports.nbd import NbdExport, NbdServer, TcpAddress
from nbd_server import protocol
from nbd_server.limits import Limits
from nbd_server.protocol import Option, OptionReply
from tests.support.complaints import Complaints, complaints
from tests.support.nbd_client import NbdClient, context_data, info_data
from tests.support.sparse_device import SparseDevice

LIMITS = Limits(options=16, option_bytes=8192, handshake_s=10.0)
MAX_ANSWER_BYTES = (LIMITS.options + 2) * 4096
CONTENT = b"content" * 1000


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[NbdServer, Complaints]]:
    exports = [
        NbdExport(name=name, disk=SparseDevice(1 << 20, content=CONTENT), read_only=False)
        for name in ("a", "b/ü")
    ]
    with (
        complaints() as heard,
        NbdServer(exports, address=TcpAddress(), limits=LIMITS) as running,
    ):
        yield running, heard


def assert_others_are_served(server: NbdServer) -> None:
    with NbdClient(("127.0.0.1", server.port)) as client:
        client.negotiate("a")
        assert client.read(0, len(CONTENT)).data == CONTENT


names = st.sampled_from([b"", b"a", "b/ü".encode(), b"nope", b"x" * 300])
queries = st.lists(st.sampled_from([b"base:", b"base:allocation", b"x:y", b""]), max_size=4)
well_formed = st.one_of(
    st.just(b""),
    st.builds(lambda name: info_data(name.decode(), 0, 3, 9), names),
    st.builds(lambda name, query: context_data(name.decode(), *query), names, queries),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(well_formed) or b"\0\0\0\0")
    for _ in range(draw(st.integers(1, 3))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data[: draw(st.integers(0, len(data)))])


option_numbers = st.one_of(st.integers(0, 12), st.integers(0, 0xFFFFFFFF))
options = st.tuples(option_numbers, st.one_of(well_formed, damaged(), st.binary(max_size=64)))


@settings(max_examples=300, deadline=None)
@given(st.lists(options, max_size=14))
@example([(Option.STARTTLS, b""), (Option.LIST, b"")])
@example([(Option.STRUCTURED_REPLY, b"")] * 14)
@example([(77, bytes(100_000)), (Option.LIST, bytes(100_000))])
def test_framed_options_in_any_order_are_each_answered(
    server: tuple[NbdServer, Complaints], sequence: list[tuple[int, bytes]]
) -> None:
    """Every option gets its end (ACK or error) and leaves negotiation, transmission or a close."""
    running, heard = server
    with NbdClient(("127.0.0.1", running.port)) as client:
        try:
            for option, data in sequence:
                if option == Option.EXPORT_NAME:
                    client.send_option(option, data)
                    client.receive(protocol.EXPORT_NAME_REPLY.size)
                    in_transmission = True
                else:
                    reply = client.option(option, data)[-1][0]
                    in_transmission = option == Option.GO and reply == OptionReply.ACK
                    assert not (option == Option.ABORT and reply != OptionReply.ACK)
                if option == Option.ABORT:
                    assert client.closed_by_server()
                    break
                if in_transmission:
                    client.send(protocol.Command.DISC)
                    assert client.closed_by_server()
                    break
            else:
                assert client.option(Option.LIST)[-1][0] == OptionReply.ACK
        except (EOFError, ConnectionError):
            # Only this option cannot be refused in another way.
            assert sequence and Option.EXPORT_NAME in [number for number, _ in sequence]
    heard.check()


def as_stream(chunks: list[bytes]) -> bytes:
    return b"".join(chunks)


framed = st.builds(
    lambda option, length, data: (
        protocol.OPTION_HEADER.pack(protocol.OPTION_MAGIC, option, length) + data
    ),
    option_numbers,
    st.sampled_from([0, 4, 5, 8192, 8193, 0xFFFFFFFF]),
    st.binary(max_size=40),
)
request = st.builds(
    protocol.REQUEST.pack,
    st.sampled_from([protocol.REQUEST_MAGIC, protocol.REQUEST_MAGIC, 0]),
    st.integers(0, 0xFFFF),
    st.integers(0, 10),
    st.integers(0, 0xFFFFFFFFFFFFFFFF),
    st.sampled_from([0, 1, 1 << 19, 1 << 20, 0xFFFFFFFFFFFFFFFF]),
    st.sampled_from([0, 1, 512, 4096, 1 << 20, 0xFFFFFFFF]),
)
go = st.just(protocol.OPTION_HEADER.pack(protocol.OPTION_MAGIC, Option.GO, 7) + info_data("a"))
stream = st.lists(st.one_of(st.binary(max_size=60), framed, request, go), max_size=12)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"\0\0\0\3", b"\0\0\0\0", b"\xff" * 4, b""]), stream)
def test_arbitrary_bytes_end_in_a_close(
    server: tuple[NbdServer, Complaints], flags: bytes, chunks: list[bytes]
) -> None:
    """A client that sends rubbish and then nothing more is let go, with a bounded answer."""
    running, heard = server
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as sock:
        answered = 0
        try:
            sock.sendall(flags + as_stream(chunks))
            sock.shutdown(socket.SHUT_WR)
            while received := sock.recv(1 << 16):
                answered += len(received)
        except ConnectionError:
            pass
    reads = sum(chunk[:4] == struct.pack(">I", protocol.REQUEST_MAGIC) for chunk in chunks)
    assert answered <= MAX_ANSWER_BYTES + reads * ((1 << 20) + 64)
    heard.check()
    assert_others_are_served(running)
