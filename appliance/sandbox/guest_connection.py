"""A TCP connection that the guest itself has accepted, with reads bounded in bytes and time.

QEMU's user network accepts on the host before it asks the guest, so a connection counts only when
QEMU says that the guest has taken it.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

from appliance.sandbox.probe_contract import Attempt, ProbedMachine

_ACCEPT_TIMEOUT_S = 1.0
_ACCEPT_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 15.0  # nginx under TCG answers its first request within 0.5 s

NOT_ACCEPTED = Attempt(False, "not accepted by the guest")


class NoAnswerError(Exception):
    """The guest answered with something else, too little or too late; the text says what."""


class GuestConnection:
    """`socket` is for libraries that speak a protocol; `send` and `read` for those who do not."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._end_s = time.monotonic() + _ANSWER_TIMEOUT_S

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, length: int) -> bytes:
        """Return exactly `length` bytes. Raises NoAnswerError."""
        data = bytearray()
        while len(data) < length:
            if time.monotonic() > self._end_s:
                raise NoAnswerError(f"{len(data)} bytes in {_ANSWER_TIMEOUT_S:.0f} s")
            piece = self.socket.recv(length - len(data))
            if not piece:
                raise NoAnswerError(f"closed after {len(data)} bytes")
            data += piece
        return bytes(data)


def talk_to_guest(
    machine: ProbedMachine, guest_port: int, talk: Callable[[GuestConnection], Attempt]
) -> Attempt:
    """Let `talk` speak to the guest's port; whatever fails about the connection is an Attempt."""
    with socket.socket() as connection:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        try:
            connection.connect(("127.0.0.1", machine.forwarded_port(guest_port)))
        except OSError:
            return NOT_ACCEPTED
        end_s = time.monotonic() + _ACCEPT_TIMEOUT_S
        while not (accepted := machine.guest_accepted(guest_port)) and time.monotonic() < end_s:
            time.sleep(_ACCEPT_POLL_S)
        if not accepted:
            return NOT_ACCEPTED
        try:
            return talk(GuestConnection(connection))
        except NoAnswerError as error:
            return Attempt(False, f"no answer: {error}")
        except OSError as error:
            return Attempt(False, f"no answer: {type(error).__name__}")


def printable(raw: bytes, limit: int = 80) -> str:
    """Bytes of a guest as a short line of visible ASCII."""
    text = raw[:limit].decode("ascii", "replace")
    return "".join(letter if " " <= letter <= "~" else "?" for letter in text)
