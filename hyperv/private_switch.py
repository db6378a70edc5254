"""A network that leads nowhere: a private virtual switch of ours, marked in its notes.

VMs that are on it reach each other, and neither the host nor a network. What is removed carries the
marker and has no adapter connected to it. Both calls may be repeated.
Thread model: functions; they block. Source: scripts `make_switch`, `remove_switch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from hyperv.host_session import HostSession
from hyperv.patience import Patience
from hyperv.script_types import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateSwitch:
    name: str
    marker: str


class _Made(Answer):
    id: str


class _Removed(Answer):
    found: bool
    used_by: list[str] = Field(max_length=4096)


def make_switch(host: HostSession, switch: PrivateSwitch, patience: Patience) -> None:
    """Raises: ScriptError: another switch has the name; HypervError."""
    parameters = {"marker": switch.marker, "name": switch.name}
    host.call("make_switch", parameters, _Made, patience=patience)


def remove_switch(host: HostSession, switch: PrivateSwitch, patience: Patience) -> tuple[str, ...]:
    """Return the names of the VMs that are on it: with any, it stays. Raises HypervError."""
    parameters = {"marker": switch.marker, "name": switch.name}
    answer = host.call("remove_switch", parameters, _Removed, patience=patience)
    return tuple(answer.used_by)
