"""READs that are looked up instead of decoded: the same answers, and none that came too late."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from appliance.exports.nfs import NfsServer, nfs_export
from nfs_server import rpc
from nfs_server.protocol import Status
from tests.support.memory_device import MemoryDevice
from tests.support.nfs_client import NFS, Reader, opaque, u32, u64
from tests.support.nfs_procedures import NfsProcedures, changes
from tests.support.nfs_servers import PATH, nfs_serving

DISK = random.Random(5).randbytes(100_003)
READ = 6


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[SessionTree]:
    tree = SessionTree(tmp_path / "tree", {0: MemoryDevice(DISK)})
    tree.add_disk(tree.root, b"flat", 0)
    yield tree
    tree.close()


@pytest.fixture
def server(tree: SessionTree) -> Iterator[NfsServer]:
    with nfs_serving(tree) as serving:
        yield serving


@pytest.fixture
def client(server: NfsServer) -> Iterator[NfsProcedures]:
    with NfsProcedures(server.port) as connected:
        yield connected


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The xid of every call that went through the decoder."""
    xids: list[int] = []
    parse = rpc.parse_call

    def parse_and_note(record: memoryview) -> rpc.Call | rpc.Rejected:
        call = parse(record)
        xids.append(call.xid if isinstance(call, rpc.Call) else 0)
        return call

    monkeypatch.setattr(rpc, "parse_call", parse_and_note)
    return xids


def flat(client: NfsProcedures) -> bytes:
    return client.find(client.mount(PATH), b"flat").handle


def raw_read(client: NfsProcedures, file: bytes, offset: int, count: int) -> Reader:
    return client.call(READ, opaque(file) + u64(offset) + u32(count))


def test_a_repeated_read_is_answered_like_the_first(
    server: NfsServer, client: NfsProcedures, decoded: list[int]
) -> None:
    """To the byte, for any range: compared with a connection that has read nothing before."""
    file = flat(client)
    raw_read(client, file, 0, 512)
    numbers = random.Random(7)
    for _ in range(60):
        offset = numbers.choice((0, 1, 4096, len(DISK) - 5, len(DISK), 1 << 62))
        offset += numbers.randrange(3)
        count = numbers.choice((0, 1, 3, 512, 4096, 16 << 10, 20_000, 1 << 20, (1 << 32) - 1))
        before = len(decoded)
        repeated = raw_read(client, file, offset, count)
        here = min(count, max(0, len(DISK) - offset))
        assert len(decoded) == before + (not here), "looked up, unless there is nothing to read"
        with NfsProcedures(server.port) as other:
            first = raw_read(other, file, offset, count)
            assert repeated.data[4:] == first.data[4:], "all but the xid"


def test_reads_in_one_packet_keep_their_xids(client: NfsProcedures) -> None:
    """Each reply says which call it answers."""
    file = flat(client)
    raw_read(client, file, 0, 4)
    sent = {
        client.send(NFS, 3, READ, opaque(file) + u64(4 * number) + u32(4)): number
        for number in range(100)
    }
    for _ in range(100):
        xid, reply = client.receive()
        number = sent.pop(xid)
        assert reply.data.endswith(DISK[4 * number : 4 * number + 4])
    assert not sent


def test_a_withdrawn_export_is_stale_for_those_who_read_it_all_the_time(
    server: NfsServer, client: NfsProcedures
) -> None:
    """What was looked up before says nothing about an export that is gone."""
    file = flat(client)
    assert client.read_at(file, 0, 10).data == DISK[:10]
    server.withdraw(PATH)
    assert client.read_at(file, 0, 10).status == Status.STALE


def test_a_client_that_may_no_longer_read_is_refused_at_its_next_read(
    tree: SessionTree, server: NfsServer, client: NfsProcedures
) -> None:
    """An export published again for others."""
    file = flat(client)
    assert client.read_at(file, 0, 10).data == DISK[:10]
    server.withdraw(PATH)
    server.publish(nfs_export(PATH, 7, tree, ["192.0.2.1"]))
    assert client.read_at(file, 0, 10).status == Status.ACCES


def test_reads_follow_what_becomes_of_a_file(client: NfsProcedures) -> None:
    """Its content, its size, its end."""
    root = client.mount(PATH)
    file = client.make(root, b"log").handle
    client.write_at(file, 0, b"first")
    for _ in range(3):
        assert client.read_at(file, 0, 100).data == b"first"
    client.write_at(file, 5, b" second")
    reply = client.read_at(file, 0, 100)
    assert (reply.data, reply.eof) == (b"first second", True)
    assert reply.attributes is not None
    assert reply.attributes["size"] == 12
    client.setattr(file, changes(size=3))
    assert client.read_at(file, 0, 100).data == b"fir"
    client.remove(root, b"log")
    assert client.read_at(file, 0, 100).status == Status.STALE


def test_another_credential_or_handle_is_decoded_anew(
    client: NfsProcedures, decoded: list[int]
) -> None:
    """A handle changed by one bit is not the one that was read before."""
    file = flat(client)
    raw_read(client, file, 0, 10)
    raw_read(client, file, 10, 10)
    before = len(decoded)
    for bit in range(0, 8 * len(file), 37):
        forged = bytearray(file)
        forged[bit // 8] ^= 1 << bit % 8
        assert client.read_at(bytes(forged), 0, 10).status == Status.BADHANDLE
    assert len(decoded) > before
