"""Portmap: our own responder over TCP and UDP."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.errors import StorageError
from appliance.exports.nfs import NfsServer, PortmapMode
from nfs_server import portmap
from tests.support.complaints import complaints, eventually
from tests.support.nfs_client import MOUNT, NFS, PORTMAP, NfsClient, RpcRefused, u32
from tests.support.nfs_servers import KEY

TCP, UDP = 6, 17
CALL = ">IIIIIIIIII"


@pytest.fixture(scope="module")
def server() -> Iterator[NfsServer]:
    running = NfsServer(
        key=KEY, host="127.0.0.1", port=0, portmap_mode=PortmapMode.OWN, portmap_port=0
    )
    with complaints(), running:
        yield running


def asked(program: int, version: int, protocol: int) -> bytes:
    return u32(program) + u32(version) + u32(protocol) + u32(0)


def over_udp(server: NfsServer, procedure: int, arguments: bytes, *, version: int = 2) -> bytes:
    """The reply without its xid."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.settimeout(20)
        message = struct.pack(CALL, 7, 0, 2, PORTMAP, version, procedure, 0, 0, 0, 0) + arguments
        datagrams.sendto(message, ("127.0.0.1", server.portmap_port))
        reply = datagrams.recv(4096)
    assert reply[:4] == u32(7)
    return reply[4:]


def test_ports_of_nfs_and_mount_are_told_over_tcp_and_udp(server: NfsServer) -> None:
    """GETPORT, 0 for what is not served; what is not TCP is not served."""
    with NfsClient(server.portmap_port) as client:
        for program, version, protocol, port in (
            (NFS, 3, TCP, server.port),
            (MOUNT, 3, TCP, server.port),
            (PORTMAP, 2, TCP, server.portmap_port),
            (PORTMAP, 2, UDP, server.portmap_port),
            (NFS, 3, UDP, 0),
            (NFS, 4, TCP, 0),
            (100021, 4, TCP, 0),
        ):
            words = client.call(3, asked(program, version, protocol), program=PORTMAP)
            assert (words.u32(), words.done) == (port, True)
            reply = over_udp(server, 3, asked(program, version, protocol))
            assert reply == u32(1) + bytes(16) + u32(port)


def test_the_whole_table_is_told(server: NfsServer) -> None:
    """DUMP, as `rpcinfo -p` shows it; over both, and NULL is answered."""
    with NfsClient(server.portmap_port) as client:
        words = client.call(4, program=PORTMAP)
        found = set()
        while words.u32():
            found.add(tuple(words.u32() for _ in range(4)))
        assert words.done
        assert found == {
            (PORTMAP, 2, TCP, server.portmap_port),
            (PORTMAP, 2, UDP, server.portmap_port),
            (NFS, 3, TCP, server.port),
            (MOUNT, 3, TCP, server.port),
        }
        assert client.call(0, program=PORTMAP).done
    assert len(over_udp(server, 4, b"")) == 20 + 4 * 20 + 4
    assert over_udp(server, 0, b"") == u32(1) + bytes(16)


def test_nothing_is_changed_or_called_for_others(server: NfsServer) -> None:
    """SET and UNSET say no, CALLIT is no procedure here, other versions are a mismatch."""
    with NfsClient(server.portmap_port) as client:
        for procedure in (1, 2):
            words = client.call(procedure, asked(100021, 4, TCP), program=PORTMAP)
            assert (words.u32(), words.done) == (0, True)
        with pytest.raises(RpcRefused, match="accepted 3"):
            client.call(5, asked(NFS, 3, 0), program=PORTMAP)
        for version in (3, 4):
            client.send(PORTMAP, version, 3, b"")
            with pytest.raises(RpcRefused, match="accepted 2"):
                client.receive()
        with pytest.raises(RpcRefused, match="accepted 1"):
            client.call(0, program=NFS)
    assert over_udp(server, 3, b"", version=4) == u32(1) + bytes(12) + u32(2) + u32(2) + u32(2)
    assert over_udp(server, 3, b"") == u32(1) + bytes(12) + u32(4)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=1500))
def test_datagrams_of_any_content_do_no_harm(server: NfsServer, raw: bytes) -> None:
    """No traceback, no answer longer than a page, and the next question is answered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.sendto(raw, ("127.0.0.1", server.portmap_port))
    assert over_udp(server, 0, b"")


def test_a_taken_port_is_an_error_that_says_so() -> None:
    """Another portmapper; nothing listens then."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = NfsServer(
            key=KEY, host="127.0.0.1", port=0, portmap_mode=PortmapMode.OWN, portmap_port=port
        )
        with pytest.raises(StorageError, match=f"port {port}: in use"):
            server.start()
    assert not portmap.answers(port=port)


class Rpcbind:
    """What rpcbind does with SET, UNSET and GETPORT over TCP, and nothing more."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int, int], int] = {}
        self.refuses = False
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            with connection:
                message = connection.recv(4096)[4:]
                procedure = struct.unpack_from(">I", message, 20)[0]
                result = self._answer(procedure, message[40:])
                reply = message[:4] + u32(1) + bytes(16) + result
                connection.sendall(u32(1 << 31 | len(reply)) + reply)

    def _answer(self, procedure: int, arguments: bytes) -> bytes:
        if procedure == 0:
            return b""
        *key, port = struct.unpack(">IIII", arguments)
        place = (key[0], key[1], key[2])
        if procedure == 3:
            return u32(self.known.get(place, 0))
        if self.refuses or (procedure == 1 and place in self.known):
            return u32(0)
        if procedure == 1:
            self.known[place] = port
            return u32(1)
        return u32(self.known.pop(place, None) is not None)


@pytest.fixture
def rpcbind() -> Iterator[Rpcbind]:
    running = Rpcbind()
    yield running
    running.close()


def test_a_server_registers_where_a_portmapper_answers_and_stays_registered(
    rpcbind: Rpcbind,
) -> None:
    """What a killed server left is replaced; an rpcbind that was started again is told again."""
    rpcbind.known[NFS, 3, TCP] = 1
    server = NfsServer(
        key=KEY,
        host="127.0.0.1",
        port=0,
        portmap_mode=PortmapMode.AUTO,
        portmap_port=rpcbind.port,
        check_registration_s=0.02,
    )
    with complaints(), server:
        expected = {(NFS, 3, TCP): server.port, (MOUNT, 3, TCP): server.port}
        assert rpcbind.known == expected
        rpcbind.known = {}
        eventually(lambda: rpcbind.known == expected)
    assert rpcbind.known == {}


def test_a_portmapper_that_refuses_is_an_error_that_says_so(rpcbind: Rpcbind) -> None:
    """Serving where nobody can find it would look like success."""
    rpcbind.refuses = True
    server = NfsServer(
        key=KEY,
        host="127.0.0.1",
        port=0,
        portmap_mode=PortmapMode.REGISTER,
        portmap_port=rpcbind.port,
    )
    with pytest.raises(StorageError, match="rpcbind refuses program 100003"):
        server.start()
