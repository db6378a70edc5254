"""What a probe is, and what it needs of the machine under test.

A probe is a value, parsed once at the border; `attempt` tries it once and is repeated until it
passes or the deadline comes. What a guest answers is read up to a bound and used for nothing but
the verdict and a line of text about it.
Thread model: probes are immutable; one thread attempts them in turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from appliance.sandbox.console import Console


class ProbedMachine(Protocol):
    """What a probe needs of a machine."""

    @property
    def console(self) -> Console: ...

    def forwarded_port(self, guest_port: int) -> int: ...

    def guest_accepted(self, guest_port: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class Attempt:
    ok: bool
    detail: str


class Probe(Protocol):
    @property
    def text(self) -> str:
        """The probe as it is written on the command line."""
        ...

    @property
    def guest_port(self) -> int | None:
        """The port of the guest that must be let in."""
        ...

    def attempt(self, machine: ProbedMachine) -> Attempt:
        """Try once; takes at most a few seconds, except for a guest that answers by drips."""
        ...
