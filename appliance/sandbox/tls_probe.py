"""`tls:PORT`: the certificate that a service shows is valid now, and for `days=N` more.

Only its dates are looked at: in isolation there is nobody to ask about anything else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from cryptography import x509

from appliance.base.clock import Clock, SystemClock
from appliance.sandbox.guest_connection import GuestConnection, NoAnswerError, talk_to_guest
from appliance.sandbox.http_probe import open_tls_context
from appliance.sandbox.probe_contract import Attempt, ProbedMachine


@dataclass(frozen=True, slots=True)
class TlsProbe:
    guest_port: int
    days: int = 0  # that it must still be valid
    name: str | None = None  # asked for by SNI
    clock: Clock = field(default_factory=SystemClock, compare=False)

    @property
    def text(self) -> str:
        words = [f"tls:{self.guest_port}"]
        if self.days:
            words.append(f"days={self.days}")
        if self.name is not None:
            words.append(f"name={self.name}")
        return " ".join(words)

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return talk_to_guest(machine, self.guest_port, self._talk)

    def _talk(self, connection: GuestConnection) -> Attempt:
        with open_tls_context().wrap_socket(connection.socket, server_hostname=self.name) as tls:
            shown = tls.getpeercert(binary_form=True)
        if not shown:
            raise NoAnswerError("no certificate")
        try:
            certificate = x509.load_der_x509_certificate(shown)
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        except ValueError as error:
            raise NoAnswerError("a certificate that cannot be read") from error
        now = self.clock.now()
        ok = begin <= now and now + timedelta(days=self.days) <= end
        return Attempt(ok, f"certificate valid from {begin:%F} to {end:%F %T} UTC")
