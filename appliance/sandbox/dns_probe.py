"""`dns:NAME` (port 53) or `dns:PORT/NAME`: the guest's name server has an answer for a name.

Asked over TCP, which every name server must take (RFC 7766); a query for an A record (RFC 1035).
"""

from __future__ import annotations

import re
import secrets
import struct
from dataclasses import dataclass

from appliance.sandbox.guest_connection import GuestConnection, NoAnswerError, talk_to_guest
from appliance.sandbox.probe_contract import Attempt, ProbedMachine

DNS_PORT = 53
NAME = re.compile(r"(?=.{1,253}\.?$)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?", re.ASCII)
_HEADER = struct.Struct(">HHHHHH")  # id, flags, questions, answers, authority, additional
assert _HEADER.size == 12
_RECURSION_DESIRED = 0x0100
_IS_ANSWER, _RESULT = 0x8000, 0x000F
_TYPE_A, _CLASS_IN = 1, 1
_RESULTS = {1: "format error", 2: "server failure", 3: "no such name", 5: "refused"}


@dataclass(frozen=True, slots=True)
class DnsProbe:
    name: str
    guest_port: int = DNS_PORT

    @property
    def text(self) -> str:
        port = "" if self.guest_port == DNS_PORT else f"{self.guest_port}/"
        return f"dns:{port}{self.name}"

    def attempt(self, machine: ProbedMachine) -> Attempt:
        return talk_to_guest(machine, self.guest_port, self._talk)

    def _talk(self, connection: GuestConnection) -> Attempt:
        number = secrets.randbits(16)
        question = b"".join(
            bytes((len(label),)) + label.encode("ascii")
            for label in self.name.rstrip(".").split(".")
        ) + struct.pack(">BHH", 0, _TYPE_A, _CLASS_IN)
        query = _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + question
        connection.send(struct.pack(">H", len(query)) + query)
        (length,) = struct.unpack(">H", connection.read(2))
        if length < _HEADER.size:
            raise NoAnswerError(f"a message of {length} bytes")
        answer_id, flags, _, answers, _, _ = _HEADER.unpack(connection.read(_HEADER.size))
        if answer_id != number or not flags & _IS_ANSWER:
            raise NoAnswerError("not an answer to the question")
        result = flags & _RESULT
        if result:
            return Attempt(False, _RESULTS.get(result, f"result {result}"))
        return Attempt(answers > 0, f"{answers} records")
