"""Slow, greedy and hostile clients: memory stays bounded and the others are served."""

from __future__ import annotations

import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from appliance.exports.datastore.tree import SessionTree
from appliance.exports.nfs import NfsServer
from nfs_server import limits as server_limits
from nfs_server.limits import Limits
from tests.support import nfs_procedures as nfs
from tests.support.complaints import eventually
from tests.support.gated_device import GatedDevice
from tests.support.memory_device import MemoryDevice
from tests.support.nfs_client import NFS, NO_CHANGES, opaque, u32, u64
from tests.support.nfs_procedures import NfsProcedures
from tests.support.nfs_servers import PATH, nfs_serving

MIB = 1 << 20
DISK = random.Random(1).randbytes(2 * MIB)


class CountingDevice(MemoryDevice):
    def __init__(self, *, inline: bool) -> None:
        super().__init__(DISK)
        self.reads = 0
        self._inline = inline

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return super().read_at(offset, length)

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        return self.read_at(offset, length) if self._inline else None


@pytest.fixture
def gated(tmp_path: Path) -> Iterator[tuple[SessionTree, GatedDevice]]:
    device = GatedDevice(DISK)
    tree = SessionTree(tmp_path / "tree", {0: device})
    tree.add_disk(tree.root, b"flat", 0)
    yield tree, device
    device.open_gates()
    tree.close()


def settled(value: Callable[[], int]) -> int:
    """Wait until a figure has stopped changing."""
    last, since_s = value(), time.monotonic()
    while time.monotonic() - since_s < 0.3:
        time.sleep(0.02)
        if value() != last:
            last, since_s = value(), time.monotonic()
    return last


def read_words(handle: bytes, count: int = MIB) -> bytes:
    return opaque(handle) + u64(0) + u32(count)


@pytest.mark.parametrize("inline", [True, False], ids=["hits", "misses"])
def test_a_client_that_does_not_read_is_not_read_for(tmp_path: Path, inline: bool) -> None:
    """500 reads of 1 MiB and no reply taken: a bounded number is served, others are not hurt, and
    when the client begins to read it gets all of them."""
    device = CountingDevice(inline=inline)
    tree = SessionTree(tmp_path / "tree", {0: device})
    tree.add_disk(tree.root, b"flat", 0)
    small = Limits(memory_bytes=32 * MIB)
    with (
        nfs_serving(tree, limits=small) as server,
        NfsProcedures(server.port) as stalled,
        NfsProcedures(server.port) as other,
    ):
        flat = stalled.find(stalled.mount(PATH), b"flat").handle
        for _ in range(500):
            stalled.send(NFS, 3, 6, read_words(flat))
        assert settled(lambda: device.reads) < 40
        for _ in range(20):
            assert other.read_at(flat, 0, 4096).data == DISK[:4096]
        for _ in range(500):
            assert stalled.receive()[1].u32() == nfs.OK
    tree.close()


def test_thousands_of_calls_that_hang_are_bounded_and_answered_in_the_end(
    gated: tuple[SessionTree, GatedDevice],
) -> None:
    """Above a connection's share nothing more is taken from it; the others go on."""
    tree, device = gated
    device.close_gate("read")
    with (
        nfs_serving(tree, limits=Limits(memory_bytes=8 * MIB)) as server,
        NfsProcedures(server.port) as greedy,
        NfsProcedures(server.port) as other,
    ):
        root = greedy.mount(PATH)
        flat = greedy.find(root, b"flat").handle
        calls = server.counters.calls
        for _ in range(5000):
            greedy.send(NFS, 3, 6, read_words(flat, 4096))
        taken = settled(lambda: server.counters.calls) - calls
        assert 200 < taken <= 4 * MIB // 8192 + 1  # its share, by what a call and its reply hold
        assert other.getattr(root).status == nfs.OK
        device.open_gates()
        for _ in range(5000):
            assert greedy.receive()[1].u32() == nfs.OK


def test_small_reads_are_not_charged_as_large_ones(
    gated: tuple[SessionTree, GatedDevice],
) -> None:
    """With many connections a share is small, and 32 outstanding reads of 4 KiB must fit."""
    tree, device = gated
    device.close_gate("read")
    with (
        nfs_serving(tree, limits=Limits(memory_bytes=MIB)) as server,
        NfsProcedures(server.port) as client,
    ):
        root = client.mount(PATH)
        flat = client.find(root, b"flat").handle
        for _ in range(32):
            client.send(NFS, 3, 6, read_words(flat, 4096))
        assert client.getattr(root).status == nfs.OK  # it was taken behind them
        device.open_gates()
        for _ in range(32):
            client.receive()


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(struct.pack(">I", (1 << 31) - 1), id="a fragment of 2 GiB"),
        pytest.param(struct.pack(">I", 1 << 31 | 2 * MIB), id="a record of 2 MiB"),
        pytest.param(struct.pack(">I", 0) * 100, id="empty fragments"),
        pytest.param(struct.pack(">III", 1 << 31 | 8, 1, 1) * 50, id="replies"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10, id="another protocol"),
    ],
)
def test_who_breaks_the_framing_is_cut_off(tmp_path: Path, stream: bytes) -> None:
    """At once, and nobody else."""
    tree = SessionTree(tmp_path / "tree", {})
    with nfs_serving(tree) as server, NfsProcedures(server.port) as other:
        with socket.create_connection(("127.0.0.1", server.port), 20) as hostile:
            hostile.sendall(stream)
            with suppress(ConnectionResetError):
                assert hostile.recv(1) == b""
        assert other.mount(PATH)
    tree.close()


def test_half_sent_calls_hold_nobody_up(gated: tuple[SessionTree, GatedDevice]) -> None:
    """A mark cut in the middle, and a WRITE that stops after its first bytes."""
    tree, _ = gated
    with nfs_serving(tree) as server, NfsProcedures(server.port) as other, ExitStack() as stack:
        for stream in (b"\x80", struct.pack(">I", 1 << 31 | MIB) + bytes(1000)):
            half = socket.create_connection(("127.0.0.1", server.port), 20)
            stack.enter_context(half)
            half.sendall(stream)
        root = other.mount(PATH)
        for number in range(20):
            assert other.make(root, b"%d" % number).status == nfs.OK


def connect(server: NfsServer, source: str = "127.0.0.1") -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), 20, source_address=(source, 0))


def closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_flood_of_connections_leaves_room_for_others(
    gated: tuple[SessionTree, GatedDevice],
) -> None:
    """One address may have half of them; what is too many is closed at once."""
    tree, _ = gated
    clients = ("127.0.0.1", "127.0.0.2")
    with (
        nfs_serving(tree, clients=clients, limits=Limits(connections=8)) as server,
        ExitStack() as stack,
    ):
        flood = [stack.enter_context(connect(server, "127.0.0.2")) for _ in range(20)]
        eventually(lambda: server.counters.refused == 16)
        assert sum(map(closed, flood[4:])) == 16
        with NfsProcedures(server.port) as other:
            assert other.mount(PATH)


def test_strangers_cannot_keep_hosts_out(
    gated: tuple[SessionTree, GatedDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get a few connections, the newest ones, whatever they leave open."""
    tree, _ = gated
    with nfs_serving(tree) as server, ExitStack() as stack, NfsProcedures(server.port) as host:
        root = host.mount(PATH)
        strangers = [
            stack.enter_context(connect(server, f"127.0.1.{number % 250 + 1}"))
            for number in range(3 * server_limits.STRANGERS)
        ]
        eventually(lambda: server.counters.refused == 2 * server_limits.STRANGERS)
        eventually(lambda: server.counters.connections == server_limits.STRANGERS + 1)
        assert all(map(closed, strangers[: 2 * server_limits.STRANGERS]))
        assert host.getattr(root).status == nfs.OK


def test_one_client_cannot_make_others_forget_their_replies_by_reading(
    gated: tuple[SessionTree, GatedDevice],
) -> None:
    """Writes and reads leave no entries in the cache of replies."""
    tree, _ = gated
    with nfs_serving(tree) as server, NfsProcedures(server.port) as client:
        root = client.mount(PATH)
        flat = client.find(root, b"flat").handle
        words = opaque(root) + opaque(b"new") + u32(1) + NO_CHANGES
        xid = client.send(NFS, 3, 8, words)
        first = client.receive()[1].data
        for number in range(300):
            assert client.write_at(flat, number, b"x").status == nfs.OK
        assert len(server._server._shared.replays) == 1
        client.send(NFS, 3, 8, words, xid=xid)
        assert client.receive()[1].data == first


def test_a_server_that_stops_answers_what_was_asked(tmp_path: Path) -> None:
    """Calls that are with the workers are answered; then the connections are closed."""
    device = GatedDevice(DISK)
    tree = SessionTree(tmp_path / "tree", {0: device})
    tree.add_disk(tree.root, b"flat", 0)
    with nfs_serving(tree) as server:
        client = NfsProcedures(server.port)
        flat = client.find(client.mount(PATH), b"flat").handle
        device.close_gate("read")
        client.send(NFS, 3, 6, read_words(flat))
        device.wait_for("read", 1)
        device.open_gates()
    assert client.receive()[1].u32() == nfs.OK
    assert client.socket.recv(1) == b""
    client.close()
    tree.close()
