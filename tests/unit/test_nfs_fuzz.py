"""Bytes under fire: whatever arrives is answered with an RPC error or ends the connection; there is
no traceback, the tree stays whole, and others are served."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from appliance.exports.datastore.tree import SessionTree
from appliance.exports.nfs import NfsServer
from nfs_server.handles import HandleCodec
from tests.support import nfs_procedures as nfs
from tests.support.memory_device import MemoryDevice
from tests.support.nfs_client import MOUNT, NFS, NO_CHANGES, RpcRefused, opaque, u32, u64
from tests.support.nfs_procedures import NfsProcedures
from tests.support.nfs_servers import KEY, PATH, nfs_serving

DISK = random.Random(9).randbytes(50_000)
TREE_ID = 7


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NfsServer]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    tree = SessionTree(folder, {0: MemoryDevice(DISK)})
    tree.add_disk(tree.root, b"flat", 0)
    with nfs_serving(tree) as running:
        yield running
    tree.close()


def others_are_served(server: NfsServer) -> None:
    with NfsProcedures(server.port) as client:
        root = client.mount(PATH)
        flat = client.find(root, b"flat")
        assert flat.status == nfs.OK or client.names(root) is not None


def answers_or_hangs_up(client: NfsProcedures, sent: int) -> None:
    """Every reply is one; then either our last call is answered or the connection is gone."""
    try:
        last = client.send(NFS, 3, 0, b"")
        for _ in range(sent + 1):
            try:
                xid, _ = client.receive()
            except RpcRefused:
                continue
            if xid == last:
                return
    except (ConnectionError, TimeoutError) as error:
        assert not isinstance(error, TimeoutError), "neither an answer nor an end"
        return
    raise AssertionError("the last call was not answered")


codec = HandleCodec(KEY)
good_handles = st.builds(codec.encode, st.just(TREE_ID), st.integers(0, 6))
handles = st.one_of(
    good_handles,
    good_handles,
    st.builds(codec.encode, st.integers(0, 9), st.integers(0, (1 << 64) - 1)),
    st.binary(max_size=70),
)
names = st.one_of(
    st.sampled_from([b"flat", b"a", b"b", b".", b"..", b"", b"a/b", b"\0", b"n" * 255, b"n" * 256]),
    st.binary(max_size=20),
)
numbers = st.one_of(st.integers(0, 40), st.sampled_from([4096, 1 << 20, 1 << 31, (1 << 32) - 1]))
longs = st.one_of(
    st.integers(0, 60_000),
    st.sampled_from([1 << 40, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)
optional = st.one_of(st.just(u32(0)), st.builds(lambda n: u32(1) + u32(n), numbers))
times = st.one_of(
    st.sampled_from([u32(0), u32(1)]),
    st.builds(lambda a, b: u32(2) + u32(a) + u32(b), numbers, numbers),
)
sizes = st.one_of(st.just(u32(0)), st.builds(lambda n: u32(1) + u64(n), st.integers(0, 1 << 33)))
attributes = st.one_of(
    st.just(NO_CHANGES),
    st.builds(lambda *parts: b"".join(parts), optional, optional, optional, sizes, times, times),
)


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda *found: b"".join(found), *parts)


handle, name = st.builds(opaque, handles), st.builds(opaque, names)
number, long, data = st.builds(u32, numbers), st.builds(u64, longs), st.builds(opaque, names)
writes = st.builds(
    lambda file, at, content, how: file + at + u32(len(content)) + how + opaque(content),
    handle,
    long,
    st.binary(max_size=300),
    st.builds(u32, st.integers(0, 3)),
)
creates = st.one_of(
    joined(handle, name, st.sampled_from([u32(0), u32(1)]), attributes),
    joined(handle, name, st.just(u32(2)), st.binary(min_size=8, max_size=8)),
)
ARGUMENTS: dict[int, st.SearchStrategy[bytes]] = {
    0: st.just(b""),
    1: handle,
    2: joined(handle, attributes, st.one_of(st.just(u32(0)), joined(st.just(u32(1)), long))),
    3: joined(handle, name),
    4: joined(handle, number),
    5: handle,
    6: joined(handle, long, number),
    7: writes,
    8: creates,
    9: joined(handle, name, attributes),
    10: joined(handle, name, attributes, data),
    11: joined(handle, name, number, attributes),
    12: joined(handle, name),
    13: joined(handle, name),
    14: joined(handle, name, handle, name),
    15: joined(handle, handle, name),
    16: joined(handle, long, st.just(bytes(8)), number),
    17: joined(handle, long, st.just(bytes(8)), number, number),
    18: handle,
    19: handle,
    20: handle,
    21: joined(handle, long, number),
}
calls = st.one_of(*(st.tuples(st.just(procedure), words) for procedure, words in ARGUMENTS.items()))


@settings(max_examples=300, deadline=None)
@given(st.lists(calls, min_size=1, max_size=8))
def test_every_well_formed_call_gets_a_whole_reply(
    server: NfsServer, sequence: list[tuple[int, bytes]]
) -> None:
    """Files of any kind where others are due, numbers at their limits, forged handles: a status,
    and a connection that goes on."""
    with NfsProcedures(server.port) as client:
        for procedure, words in sequence:
            client.send(NFS, 3, procedure, words)
        answered = 0
        while answered < len(sequence):
            try:
                client.receive()
            except RpcRefused as refused:
                assert refused.number == 4, "garbage arguments at worst"
            answered += 1
        assert client.call(0).done


@st.composite
def damaged(draw: st.DrawFn) -> tuple[int, bytes]:
    procedure, words = draw(calls)
    raw = bytearray(words or b"\0\0\0\0")
    for _ in range(draw(st.integers(1, 3))):
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return procedure, bytes(raw[: draw(st.integers(0, len(raw)))])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(damaged(), min_size=1, max_size=8),
    st.sampled_from([(NFS, 3), (MOUNT, 3), (NFS, 4), (100000, 2), (0, 0)]),
)
def test_damaged_calls_get_an_rpc_error_or_a_status(
    server: NfsServer, sequence: list[tuple[int, bytes]], program: tuple[int, int]
) -> None:
    """Whatever the arguments are."""
    with NfsProcedures(server.port) as client:
        for procedure, words in sequence:
            client.send(*program, procedure, words)
        answers_or_hangs_up(client, len(sequence))


headers = st.lists(st.one_of(st.integers(0, 4), numbers), min_size=0, max_size=14)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(headers.map(lambda h: b"".join(map(u32, h))), st.binary(max_size=200))))
@example([u32(1) + u32(0) + u32(2) + u32(NFS) + u32(3) + u32(1) + u32(1) + u32(400) + bytes(400)])
def test_arbitrary_records_get_an_rpc_error_or_a_close(
    server: NfsServer, records: list[bytes]
) -> None:
    """Headers of any kind, with anything behind them."""
    with NfsProcedures(server.port) as client:
        client.socket.sendall(
            b"".join(struct.pack(">I", 1 << 31 | len(each)) + each for each in records)
        )
        answers_or_hangs_up(client, len(records))
    others_are_served(server)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2000))
@example(b"\x7f\xff\xff\xff")
@example(bytes(400))
def test_arbitrary_bytes_end_in_an_answer_or_a_close(server: NfsServer, stream: bytes) -> None:
    """Streams that are no records; the client closes its side first, as it may."""
    with NfsProcedures(server.port) as client:
        client.socket.sendall(stream)
        client.socket.shutdown(1)
        try:
            while client.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
    others_are_served(server)
