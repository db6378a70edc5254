"""Fault switches as JSON commands, for the lab's control socket.

| command | answer |
|---|---|
| `{"op": "arm", "name": N, "times": 1 or null, "amount": 0, "match": {field: pattern}}` | `{}` |
| `{"op": "disarm", "name": N or null}` | `{"disarmed": count}` |
| `{"op": "list"}` | `{"armed": [...], "fired": {name: count}, "known": {name: text}}` |

Thread-safe as the switches are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lab.faults import FaultName, FaultSwitches


class BadCommandError(ValueError):
    """The command is not one of the table, or a field is of the wrong type."""


def control(switches: FaultSwitches, command: Any) -> dict[str, Any]:
    """Carry out one command. Raises BadCommandError."""
    if not isinstance(command, dict):
        raise BadCommandError("a command is an object")
    operation = command.get("op")
    if operation == "arm":
        _arm(switches, command)
        return {}
    if operation == "disarm":
        name = command.get("name")
        return {"disarmed": switches.disarm(None if name is None else _name(name))}
    if operation == "list":
        return _listed(switches)
    raise BadCommandError(f"unknown op {operation!r}")


def _arm(switches: FaultSwitches, command: Mapping[str, Any]) -> None:
    times, amount = command.get("times", 1), command.get("amount", 0)
    match = command.get("match", {})
    if times is not None and (not isinstance(times, int) or isinstance(times, bool)):
        raise BadCommandError("times is a whole number or null")
    if not isinstance(amount, int | float) or isinstance(amount, bool):
        raise BadCommandError("amount is a number")
    if not isinstance(match, dict) or not all(isinstance(v, str | int) for v in match.values()):
        raise BadCommandError("match is an object of strings")
    if match.keys() & {"self", "name", "times", "amount"}:
        raise BadCommandError("no place has such a field")
    try:
        switches.arm(_name(command.get("name")), times, amount=amount, **match)
    except ValueError as error:
        raise BadCommandError(str(error)) from error


def _name(value: Any) -> FaultName:
    try:
        return FaultName(value)
    except ValueError as error:
        raise BadCommandError(f"unknown fault {value!r}") from error


def _listed(switches: FaultSwitches) -> dict[str, Any]:
    armed = [
        {
            "name": one.fault.name.value,
            "left": one.left,
            "amount": one.fault.amount,
            "match": dict(one.fault.match),
        }
        for one in switches.armed()
    ]
    fired = {name.value: switches.fired(name) for name in FaultName if switches.fired(name)}
    return {"armed": armed, "fired": fired, "known": {name.value: name.text for name in FaultName}}
