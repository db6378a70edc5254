"""The switch of an isolated network, with sockets in the place of QEMU."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest

from appliance.sandbox.network import IsolatedNetwork, Plug
from appliance.sandbox.spec import PLACES_MAX, mac_of

BROADCAST = b"\xff" * 6
GATEWAY = bytes.fromhex("52550a000202")
ARP, IPV4 = b"\x08\x06", b"\x08\x00"


@pytest.fixture
def plugs() -> Iterator[list[Plug]]:
    with IsolatedNetwork() as network:
        plugged = [network.plug(place) for place in range(3)]
        for plug in plugged:
            plug.guest.settimeout(5)
            plug.gateway.settimeout(5)
        yield plugged
        for plug in plugged:
            plug.close()


def frame(target: bytes, sender: bytes, kind: bytes = ARP, body: bytes = bytes(46)) -> bytes:
    return target + sender + kind + body


def send(end: socket.socket, *frames: bytes) -> None:
    end.sendall(b"".join(struct.pack(">I", len(each)) + each for each in frames))


def receive(end: socket.socket) -> bytes:
    (length,) = struct.unpack(">I", end.recv(4, socket.MSG_WAITALL))
    return end.recv(length, socket.MSG_WAITALL)


def dhcp(sender: bytes) -> bytes:
    header = bytearray(20)
    header[0], header[9] = 0x45, 17
    return frame(BROADCAST, sender, IPV4, bytes(header) + struct.pack(">HHHH", 68, 67, 8, 0))


def test_a_frame_goes_to_the_one_it_is_addressed_to(plugs: list[Plug]) -> None:
    """Nobody else sees it, and the order is kept; the second frame shows that nothing came."""
    first, second = frame(mac_of(1), mac_of(0)), frame(mac_of(2), mac_of(0), body=b"2" * 46)
    send(plugs[0].guest, first, second)
    assert receive(plugs[1].guest) == first
    assert receive(plugs[2].guest) == second


def test_a_broadcast_goes_to_all_guests_and_the_own_gateway(plugs: list[Plug]) -> None:
    """Address resolution works; another's gateway is not asked."""
    sent, last = frame(BROADCAST, mac_of(0)), frame(GATEWAY, mac_of(1))
    send(plugs[0].guest, sent)
    assert [receive(plugs[place].guest) for place in (1, 2)] == [sent, sent]
    assert receive(plugs[0].gateway) == sent
    send(plugs[1].guest, last)
    assert receive(plugs[1].gateway) == last


def test_a_request_for_an_address_goes_to_the_own_gateway_alone(plugs: list[Plug]) -> None:
    """Each guest is given the address that was planned for it."""
    send(plugs[0].guest, dhcp(mac_of(0)), frame(mac_of(1), mac_of(0)))
    assert receive(plugs[0].gateway) == dhcp(mac_of(0))
    assert receive(plugs[1].guest) == frame(mac_of(1), mac_of(0))


def test_a_gateway_reaches_its_own_guest_and_no_other(plugs: list[Plug]) -> None:
    """Whatever address it writes."""
    for target in (mac_of(1), BROADCAST, mac_of(0)):
        send(plugs[0].gateway, frame(target, GATEWAY))
        assert receive(plugs[0].guest) == frame(target, GATEWAY)
    send(plugs[1].gateway, frame(mac_of(1), GATEWAY, body=b"!" * 46))
    assert receive(plugs[1].guest) == frame(mac_of(1), GATEWAY, body=b"!" * 46)


def test_a_guest_cannot_speak_for_another(plugs: list[Plug]) -> None:
    """A frame with another sender than the NIC's own is dropped."""
    genuine = frame(mac_of(1), mac_of(0))
    send(plugs[0].guest, frame(mac_of(1), mac_of(2)), frame(mac_of(1), GATEWAY), b"short", genuine)
    assert receive(plugs[1].guest) == genuine


def test_a_cable_that_carries_no_frames_is_pulled(plugs: list[Plug]) -> None:
    """A length that no frame has ends the machine's part in the network; the others go on."""
    plugs[0].guest.sendall(struct.pack(">I", 1 << 30) + bytes(64))
    assert plugs[0].guest.recv(1) == b""
    send(plugs[1].guest, frame(mac_of(2), mac_of(1)))
    assert receive(plugs[2].guest) == frame(mac_of(2), mac_of(1))


def test_a_guest_that_does_not_listen_blocks_nobody(plugs: list[Plug]) -> None:
    """Frames for it are lost beyond a bound; those for others arrive."""
    flood = frame(mac_of(1), mac_of(0), body=bytes(60_000))
    for _ in range(100):
        send(plugs[0].guest, flood)
    send(plugs[0].guest, frame(mac_of(2), mac_of(0)))
    assert receive(plugs[2].guest) == frame(mac_of(2), mac_of(0))


def test_a_machine_that_is_gone_is_off_the_network(plugs: list[Plug]) -> None:
    """What is addressed to it is dropped."""
    plugs[1].close()
    send(plugs[0].guest, frame(mac_of(1), mac_of(0)), frame(mac_of(2), mac_of(0)))
    assert receive(plugs[2].guest) == frame(mac_of(2), mac_of(0))


def test_every_place_has_its_own_hardware_address() -> None:
    """They are locally made and none is that of a gateway."""
    addresses = {mac_of(place) for place in range(PLACES_MAX)}
    assert len(addresses) == PLACES_MAX
    assert all(len(address) == 6 and not address.startswith(GATEWAY[:2]) for address in addresses)
