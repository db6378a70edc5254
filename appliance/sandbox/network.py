"""The isolated network of an application: its machines reach each other, and nothing else.

A switch in this process. Each machine has two cables: one from the guest's NIC, one from a QEMU
user network of its own (restricted; it gives the guest its address and lets the probes in):

    guest -> its own gateway      what is addressed to a gateway, and broadcasts
    guest -> another guest        what is addressed to it; broadcasts, but for DHCP: each guest
                                  is given its address by its own gateway
    gateway -> its own guest      everything
    gateway -> anything else      nothing

A frame whose sender is not the NIC's own address is dropped, so no guest speaks for another. There
is no way out: the switch opens no socket but the cables. Frames are at most 64 KiB, waiting ones
are bounded per cable; beyond that they are lost, as in any switch.
Thread model: one thread switches; `plug` from any thread. Leaving joins the thread.
Source: QEMU net/socket.c (stream: length as 4 bytes big-endian, then the frame).
"""

from __future__ import annotations

import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field

from appliance.sandbox.spec import mac_of

_LENGTH = struct.Struct(">I")
_FRAME_BYTES_MIN, _FRAME_BYTES_MAX = 14, 68 * 1024  # QEMU's NET_BUFSIZE is 68 KiB
_WAITING_BYTES_MAX = 1 << 20
_READ_BYTES = 64 * 1024
_GATEWAY_MAC_START = bytes((0x52, 0x55))  # libslirp: 52:55 and the address
_IPV4 = b"\x08\x00"
_UDP = 17
_DHCP_PORTS = frozenset({67, 68})


@dataclass(frozen=True, slots=True)
class Plug:
    """QEMU's ends of a machine's two cables."""

    guest: socket.socket
    gateway: socket.socket

    def close(self) -> None:
        self.guest.close()
        self.gateway.close()


@dataclass(slots=True, eq=False)
class _Cable:
    place: int
    is_gateway: bool
    end: socket.socket
    received: bytearray = field(default_factory=bytearray)
    waiting: bytearray = field(default_factory=bytearray)


class IsolatedNetwork:
    """Use as a context manager; machines must have ended before it is left."""

    def __init__(self) -> None:
        self._cables: dict[tuple[int, bool], _Cable] = {}
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()  # of the cables and the selector's map
        self._wake, self._woken = socket.socketpair()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sandbox-network", daemon=True)
        self.carried_frames = 0  # between guests

    def __enter__(self) -> IsolatedNetwork:
        self._woken.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        self._wake.send(b"x")
        self._thread.join()
        for cable in self._cables.values():
            cable.end.close()
        self._selector.close()
        self._wake.close()
        self._woken.close()

    def plug(self, place: int) -> Plug:
        """Lay the cables of the machine at `place`; close the plug once QEMU has it."""
        ends = []
        with self._lock:
            for is_gateway in (False, True):
                ours, theirs = socket.socketpair()
                ours.setblocking(False)
                cable = _Cable(place, is_gateway, ours)
                self._cables[place, is_gateway] = cable
                self._selector.register(ours, selectors.EVENT_READ, cable)
                ends.append(theirs)
        self._wake.send(b"x")
        return Plug(*ends)

    def _run(self) -> None:
        while not self._closing:
            for key, events in self._selector.select():
                with self._lock:
                    if key.data is None:
                        self._woken.recv(64)
                    elif not self._is_plugged(key.data):
                        continue  # pulled since `select` returned
                    elif events & selectors.EVENT_WRITE:
                        self._drain(key.data)
                    else:
                        self._receive(key.data)

    def _receive(self, cable: _Cable) -> None:
        try:
            data = cable.end.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._pull(cable)
            return
        cable.received += data
        while len(cable.received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(cable.received)
            if length > _FRAME_BYTES_MAX:
                self._pull(cable)  # not a frame: nothing behind it can be trusted
                return
            end = _LENGTH.size + length
            if len(cable.received) < end:
                return
            self._switch(cable, bytes(cable.received[_LENGTH.size : end]))
            del cable.received[:end]

    def _switch(self, cable: _Cable, frame: bytes) -> None:
        if len(frame) < _FRAME_BYTES_MIN:
            return
        if cable.is_gateway:
            self._send((cable.place, False), frame)
            return
        target, sender = frame[:6], frame[6:12]
        if sender != mac_of(cable.place):
            return
        to_all = bool(target[0] & 1)
        if to_all or target.startswith(_GATEWAY_MAC_START):
            self._send((cable.place, True), frame)
        if to_all and _is_dhcp(frame):
            return
        for place, is_gateway in list(self._cables):
            if is_gateway or place == cable.place:
                continue
            if to_all or target == mac_of(place):
                self.carried_frames += 1
                self._send((place, False), frame)

    def _send(self, address: tuple[int, bool], frame: bytes) -> None:
        cable = self._cables.get(address)
        if cable is None or len(cable.waiting) + len(frame) > _WAITING_BYTES_MAX:
            return
        cable.waiting += _LENGTH.pack(len(frame)) + frame
        self._drain(cable)

    def _drain(self, cable: _Cable) -> None:
        try:
            while cable.waiting:
                sent = cable.end.send(cable.waiting)
                del cable.waiting[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._pull(cable)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if cable.waiting else 0)
        if self._selector.get_key(cable.end).events != events:
            self._selector.modify(cable.end, events, cable)

    def _pull(self, cable: _Cable) -> None:
        """QEMU has ended, or talks nonsense: the machine is off the network."""
        if self._is_plugged(cable):
            del self._cables[cable.place, cable.is_gateway]
            self._selector.unregister(cable.end)
            cable.end.close()

    def _is_plugged(self, cable: _Cable) -> bool:
        return self._cables.get((cable.place, cable.is_gateway)) is cable


def _is_dhcp(frame: bytes) -> bool:
    """UDP over IPv4 to a port of DHCP or BOOTP (RFC 2131); fragments are none."""
    if frame[12:14] != _IPV4 or len(frame) < 34 or frame[23] != _UDP:
        return False
    start = 14 + (frame[14] & 0x0F) * 4
    port = int.from_bytes(frame[start + 2 : start + 4], "big")
    return port in _DHCP_PORTS
