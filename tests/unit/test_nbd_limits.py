"""Slow and hostile clients, bounds, listeners, and the end of a server."""

from __future__ import annotations

import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from appliance.base.errors import StorageError, UsageError
from appliance.exports.nbd import NbdExport, NbdServer, NbdTls, TcpAddress
from nbd_server import protocol
from nbd_server.errors import TlsConfigError
from nbd_server.handshake import TlsMode
from nbd_server.limits import Limits
from nbd_server.protocol import Command, Option, OptionReply
from nbd_server.tls import TlsPolicy, server_context
from tests.support.complaints import complaints, eventually
from tests.support.nbd_client import NbdClient
from tests.support.nbd_servers import serving
from tests.support.sparse_device import SparseDevice

MIB = 1 << 20


class CountingDevice(SparseDevice):
    """Counts how many reads it was asked for, and can hold writes until a gate opens."""

    def __init__(self, size_bytes: int, *, inline: bool = True) -> None:
        super().__init__(size_bytes)
        self.reads = 0
        self.gate = threading.Event()
        self.gate.set()
        self.writing = threading.Semaphore(0)
        self.inline = inline
        self.content = b"\xa5" * MIB

    def read_at(self, offset: int, length: int) -> bytes:
        self.reads += 1
        return self.content[:length]

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        return self.read_at(offset, length) if self.inline else None

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.writing.release()
        assert self.gate.wait(20)
        super().write_at(offset, data)


def settled(value: Callable[[], int]) -> int:
    """Wait until a figure has stopped changing."""
    last, since = value(), time.monotonic()
    while time.monotonic() - since < 0.3:
        time.sleep(0.02)
        if value() != last:
            last, since = value(), time.monotonic()
    return last


def connect(server: NbdServer, *, structured: bool = True) -> NbdClient:
    return NbdClient(("127.0.0.1", server.port)).negotiate("disk", structured=structured)


@pytest.mark.parametrize("inline", [True, False], ids=["hits", "misses"])
def test_a_client_that_does_not_read_is_not_read_for(inline: bool) -> None:
    """1000 reads of 1 MiB and no reply taken: a bounded number is served, others are not hurt,
    and when the client begins to read it gets all of them."""
    disk = CountingDevice(2 * MIB, inline=inline)
    with (
        serving(NbdExport(name="disk", disk=disk)) as server,
        connect(server) as stalled,
        connect(server) as other,
    ):
        for cookie in range(1000):
            stalled.send(Command.READ, cookie=cookie, length=MIB)
        served = settled(lambda: disk.reads)
        assert served < 64
        for _ in range(50):
            assert other.read(0, 4096).data == disk.content[:4096]
        cookies = {stalled.reply().cookie for _ in range(1000)}
        assert cookies == set(range(1000))


@pytest.mark.parametrize("structured", [True, False], ids=["structured", "simple"])
def test_large_reads_that_nobody_takes_are_not_read_from_the_disk(structured: bool) -> None:
    """100 reads of 32 MiB and no reply taken: a few pieces are read, whatever the form."""
    disk = CountingDevice(40 * MIB)
    disk.content = b"\xa5" * (2 * MIB)
    with (
        serving(NbdExport(name="disk", disk=disk)) as server,
        connect(server, structured=structured) as stalled,
    ):
        for cookie in range(100):
            stalled.send(Command.READ, cookie=cookie, length=32 * MIB)
        assert settled(lambda: disk.reads) < 16
        assert stalled.reply().data == b"\xa5" * (32 * MIB)


def test_a_small_server_shares_its_memory_evenly() -> None:
    limits = Limits(memory_bytes=64 * MIB)
    assert limits.share_bytes(1) == 16 * MIB
    assert limits.share_bytes(16) == 4 * MIB
    assert limits.share_bytes(1000) == Limits.MIN_SHARE_BYTES


def test_half_sent_requests_hold_nobody_up() -> None:
    """A header cut in the middle, and a payload of 32 MiB that stops after its first bytes."""
    disk = SparseDevice(40 * MIB)
    with serving(NbdExport(name="disk", disk=disk, read_only=False)) as server:
        with connect(server) as header, connect(server) as payload, connect(server) as other:
            header.sock.sendall(protocol.REQUEST.pack(protocol.REQUEST_MAGIC, 0, 0, 1, 0, 4)[:13])
            payload.send(Command.WRITE, length=32 * MIB, payload=b"begin")
            for number in range(50):
                assert other.write(39 * MIB, bytes([number])).errno == 0
                assert other.read(39 * MIB, 1).data == bytes([number])
        with connect(server) as again:
            assert again.read(0, 5).data == bytes(5), "an unfinished piece must not be written"


def test_a_busy_client_leaves_workers_to_the_others() -> None:
    """One client's writes all hang on the disk; another one is still served."""
    disk = CountingDevice(2 * MIB, inline=False)
    disk.gate.clear()
    with (
        serving(NbdExport(name="disk", disk=disk, read_only=False)) as server,
        connect(server) as busy,
        connect(server) as other,
    ):
        try:
            for cookie in range(500):
                busy.send(Command.WRITE, cookie=cookie, length=512, payload=bytes(512))
            assert disk.writing.acquire(timeout=20)
            assert len(other.read(0, 512).data) == 512
        finally:
            disk.gate.set()
        assert {busy.reply().cookie for _ in range(500)} == set(range(500))


# negotiation limits


def test_the_negotiation_has_a_deadline() -> None:
    limits = Limits(handshake_s=0.2)
    with serving(NbdExport(name="disk", disk=SparseDevice(512)), limits=limits) as server:
        with NbdClient(("127.0.0.1", server.port)) as silent:
            assert silent.closed_by_server()
        with connect(server) as client:
            time.sleep(0.4)
            assert client.read(0, 512).errno == 0, "the deadline ends with the negotiation"


def test_options_are_counted() -> None:
    limits = Limits(options=5)
    with (
        serving(NbdExport(name="disk", disk=SparseDevice(512)), limits=limits) as server,
        NbdClient(("127.0.0.1", server.port)) as client,
    ):
        for _ in range(5):
            assert client.option(Option.LIST)[-1][0] == OptionReply.ACK
        client.send_option(Option.LIST)
        assert client.closed_by_server()


def test_oversized_options_are_skipped_and_refused() -> None:
    with (
        serving(NbdExport(name="disk", disk=SparseDevice(512))) as server,
        NbdClient(("127.0.0.1", server.port)) as client,
    ):
        assert client.option(Option.GO, bytes(3 * MIB))[-1][0] == OptionReply.ERR_TOO_BIG
        assert client.option(4711, bytes(MIB))[-1][0] == OptionReply.ERR_UNSUP
        client.negotiate("disk")
        assert client.read(0, 512).errno == 0


def test_connections_are_limited(tmp_path: Path) -> None:
    """Those over a Unix socket have no address and share all of them."""
    path, limits = tmp_path / "disk.sock", Limits(connections=2)
    export = NbdExport(name="disk", disk=SparseDevice(512))
    with serving(export, address=path, limits=limits) as server:
        with NbdClient(path), NbdClient(path):
            with pytest.raises((EOFError, ConnectionError)):
                NbdClient(path)
            assert server.counters.refused == 1 and server.counters.connections == 2
        eventually(lambda: server.counters.connections == 0)
        with NbdClient(path).negotiate("disk") as client:
            assert client.read(0, 512).errno == 0


def test_a_flood_of_connections_leaves_room_for_others() -> None:
    """One address may have half of them, whether it negotiates or not."""
    limits = Limits(connections=8)
    export = NbdExport(name="disk", disk=SparseDevice(512))
    with serving(export, limits=limits) as server, ExitStack() as stack:
        for _ in range(20):
            stranger = socket.create_connection(
                ("127.0.0.1", server.port), timeout=20, source_address=("127.0.0.2", 0)
            )
            stack.enter_context(stranger)
        eventually(lambda: server.counters.refused == 16)
        assert server.counters.connections == 4
        with connect(server) as client:
            assert client.read(0, 512).errno == 0


# listeners


def test_a_unix_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    with serving(NbdExport(name="disk", disk=SparseDevice(512)), address=path) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert server.uri("disk") == f"nbd+unix:///disk?socket={path}"
        with NbdClient(path) as client:
            assert client.negotiate("disk").read(0, 512).errno == 0
    assert not path.exists()


def test_a_socket_left_by_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "disk.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    with serving(NbdExport(name="disk", disk=SparseDevice(512)), address=path):
        NbdClient(path).sock.close()


def test_a_living_server_and_other_files_are_left_alone(tmp_path: Path) -> None:
    path, precious = tmp_path / "disk.sock", tmp_path / "precious"
    precious.write_text("data")
    export = NbdExport(name="disk", disk=SparseDevice(512))
    with serving(export, address=path):
        for taken in (path, precious):
            with pytest.raises(StorageError):
                NbdServer([export], address=taken).start()
        with NbdClient(path) as client:
            client.negotiate("disk")
    assert precious.read_text() == "data"


def test_a_taken_port_is_an_error() -> None:
    export = NbdExport(name="disk", disk=SparseDevice(512))
    with serving(export) as server:
        second = NbdServer([export], address=TcpAddress(port=server.port))
        with pytest.raises(StorageError):
            second.start()
        second.stop()


def test_unusable_exports_are_an_error() -> None:
    export = NbdExport(name="disk", disk=SparseDevice(512))
    for exports in ([], [export, export], [NbdExport(name="", disk=SparseDevice(512))]):
        with pytest.raises(UsageError):
            NbdServer(exports, address=TcpAddress()).start()


def test_uris_quote_names(tmp_path: Path) -> None:
    exports = [NbdExport(name="a b/ü?", disk=SparseDevice(512))]
    server = NbdServer(exports, address=TcpAddress(host="::1"))
    assert server.uri("a b/ü?") == "nbd://[::1]:0/a%20b%2F%C3%BC%3F"
    with pytest.raises(UsageError):
        server.uri("other")


# the end


def test_stopping_finishes_what_was_asked_for() -> None:
    """Writes in flight when the server stops are done, acknowledged and on the disk."""
    disk = CountingDevice(2 * MIB, inline=False)
    disk.gate.clear()
    with complaints():
        server = NbdServer(
            [NbdExport(name="disk", disk=disk, read_only=False)], address=TcpAddress()
        )
        server.start()
        with connect(server) as client:
            for cookie in range(20):
                payload = bytes([cookie + 1]) * 512
                client.send(
                    Command.WRITE, cookie=cookie, offset=cookie * 512, length=512, payload=payload
                )
            eventually(lambda: server.counters.requests == 20)
            stopping = threading.Thread(target=server.stop)
            stopping.start()
            time.sleep(0.05)
            disk.gate.set()
            answers = [client.reply() for _ in range(20)]
            assert {reply.cookie for reply in answers} == set(range(20))
            assert all(reply.errno == 0 for reply in answers)
            assert client.closed_by_server()
            stopping.join(20)
            assert not stopping.is_alive()
    written = SparseDevice.read_at(disk, 0, 20 * 512)
    assert written == b"".join(bytes([cookie + 1]) * 512 for cookie in range(20))


def test_stopping_does_not_wait_for_ever_for_a_client() -> None:
    """A client that never takes its replies is cut off after the time given to it."""
    disk = CountingDevice(2 * MIB)
    limits = Limits(shutdown_s=0.3)
    with (
        serving(NbdExport(name="disk", disk=disk), limits=limits) as server,
        connect(server) as stalled,
        NbdClient(("127.0.0.1", server.port)),
    ):
        for cookie in range(200):
            stalled.send(Command.READ, cookie=cookie, length=MIB)
        settled(lambda: disk.reads)
        server.stop()
        server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nbd")]


def test_a_stopped_server_answers_nobody_and_leaks_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with serving(NbdExport(name="disk", disk=SparseDevice(512))) as server:
            clients = [connect(server) for _ in range(5)]
        for client in clients:
            assert client.closed_by_server()
            client.sock.close()
        with pytest.raises(ConnectionError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_counters_count(tmp_path: Path) -> None:
    with (
        serving(NbdExport(name="disk", disk=SparseDevice(8 * MIB), read_only=False)) as server,
        connect(server) as client,
    ):
        client.read(0, 1000)
        client.write(0, bytes(500))
        client.write(0, bytes(2 * MIB))
        client.read(0, 2 * MIB)
        assert server.counters.read_bytes == 1000 + 2 * MIB
        assert server.counters.written_bytes == 500 + 2 * MIB
        assert server.counters.accepted == 1


# certificates


def test_missing_or_broken_certificates_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TlsConfigError, match=r"server-cert\.pem is missing"):
        server_context(tmp_path, verify_clients=False)
    for name in ("server-cert.pem", "server-key.pem", "ca-cert.pem"):
        (tmp_path / name).write_text("no certificate")
    with pytest.raises(TlsConfigError):
        server_context(tmp_path, verify_clients=True)
    exports = [NbdExport(name="disk", disk=SparseDevice(512))]
    with pytest.raises(UsageError):
        NbdServer(exports, address=TcpAddress(), tls=NbdTls(directory=tmp_path)).start()


def test_a_policy_without_tls_is_no_policy() -> None:
    with pytest.raises(ValueError):
        TlsPolicy(context=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), mode=TlsMode.OFF)
