"""What a source writes down before it makes something on a hypervisor.

The journal itself is the catalog's; a source knows this much of it, and `service` joins them.
Order: `record` (durable on return), the call, `complete`, …, removal, `close`. What a killed run
left open is found by `abandoned`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from appliance.base.ids import RunId


class Made(StrEnum):
    SNAPSHOT = "snapshot"
    HOT_ADDED_DISK = "hot-added-disk"
    VM = "vm"
    REFERENCE_POINT = "reference-point"  # stays while the next backup needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIntent:
    id: int
    kind: str
    run_id: RunId
    target: str  # the object that it is made on
    detail: str
    name: str = ""
    made: str | None = None  # what it is called there; None: not known to have come to be


class Intents(Protocol):
    """Of one registered host."""

    def record(self, kind: Made, run_id: RunId, target: str, name: str, detail: str = "") -> int:
        """Write down what is about to be made; durable on return. Raises StorageError."""
        ...

    def complete(self, intent: int, made: str) -> None:
        """It came to be and has this id."""
        ...

    def close(self, intent: int) -> None:
        """It is gone, or never came to be. Idempotent."""
        ...

    def abandoned(self) -> Sequence[OpenIntent]:
        """What runs that are no longer alive have left open, the newest first."""
        ...
