"""`http:PORT/PATH` and `https:PORT/PATH`, with `status=N` and `text=…` for what must come back.

Over TLS any certificate will do: whether it is good is what `tls:PORT` asks.
"""

from __future__ import annotations

import http.client
import re
import ssl
from dataclasses import dataclass

from appliance.sandbox.guest_connection import GuestConnection, talk_to_guest
from appliance.sandbox.probe_contract import Attempt, ProbedMachine

_BODY_BYTES_MAX = 64 * 1024
TEXT_CHARACTERS_MAX = 256
PATH = re.compile(r"/[!-~]{0,1023}")  # visible ASCII: no space or line end reaches the request


def open_tls_context() -> ssl.SSLContext:
    """Talks to any server, old ones too: nothing secret is sent and nothing is believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """Passes when a GET is answered with a status from 200 to 399, or with what is expected."""

    guest_port: int
    path: str
    status: int | None = None  # None: any from 200 to 399
    expected_text: str | None = None  # somewhere in the first 64 KiB
    tls: bool = False

    @property
    def text(self) -> str:
        words = [f"{'https' if self.tls else 'http'}:{self.guest_port}{self.path}"]
        if self.status is not None:
            words.append(f"status={self.status}")
        if self.expected_text is not None:
            words.append(f"text={self.expected_text}")
        return " ".join(words)

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return talk_to_guest(machine, self.guest_port, self._talk)

    def _talk(self, connection: GuestConnection) -> Attempt:
        try:
            return self._get(connection)
        except http.client.HTTPException as error:
            return Attempt(False, f"no answer: {type(error).__name__}")

    def _get(self, connection: GuestConnection) -> Attempt:
        client = http.client.HTTPConnection("localhost", self.guest_port)
        client.sock = connection.socket
        if self.tls:
            client.sock = open_tls_context().wrap_socket(connection.socket)
        client.request("GET", self.path, headers={"Connection": "close"})
        response = client.getresponse()  # http.client bounds line lengths and header counts
        body = response.read(_BODY_BYTES_MAX)
        detail = f"status {response.status}, {len(body)} bytes"
        ok = 200 <= response.status < 400
        if self.status is not None:
            ok = response.status == self.status
        if self.expected_text is not None and self.expected_text.encode() not in body:
            return Attempt(False, f"{detail}, without the expected text")
        return Attempt(ok, detail)
