"""Our mark on what we leave at a Hyper-V host, so that a crash leaves nothing nameless behind.

The name of a recovery checkpoint, a part of a VM's notes, the description of a share, the name of a
folder: always the same text, `holdfast-<appliance id>-<run id>-<purpose>`. A text that is not
exactly what `Marker` writes marks nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_RUN = r"[0-9A-Za-z]{1,24}(?:-[0-9A-Za-z]{1,36}){1,5}"
_APPLIANCE_ID = re.compile(_UUID)
_RUN_ID = re.compile(_RUN)
_TEXT = re.compile(rf"holdfast-({_UUID})-({_RUN})-(backup|restore)")
_LIMIT_CHARS = 99
SESSION = "instant-"
"""Begins the run id of what an instant recovery session made: it lives as long as the session."""


class Purpose(StrEnum):
    BACKUP = "backup"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """Raises ValueError: an id that is not one."""

    appliance_id: str  # a UUID, lower case
    run_id: str
    purpose: Purpose = Purpose.BACKUP

    def __post_init__(self) -> None:
        if not _APPLIANCE_ID.fullmatch(self.appliance_id):
            raise ValueError(f"not an appliance id: {self.appliance_id!r}")
        if not _RUN_ID.fullmatch(self.run_id) or len(self.text) > _LIMIT_CHARS:
            raise ValueError(f"not a run id for a marker: {self.run_id!r}")

    @property
    def text(self) -> str:
        return f"{prefix(self.appliance_id)}{self.run_id}-{self.purpose}"

    @property
    def is_of_session(self) -> bool:
        return self.run_id.startswith(SESSION)

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Return the marker that `text` is, None for anything else. Never raises."""
        found = _TEXT.fullmatch(text) if len(text) <= _LIMIT_CHARS else None
        if found is None:
            return None
        return cls(appliance_id=found[1], run_id=found[2], purpose=Purpose(found[3]))


def without_markers(text: str) -> str:
    """The text of somebody's notes without words that are markers; all else as it is."""
    words = re.split(r"(\s+)", text)
    return "".join(word for word in words if Marker.parse(word) is None)


def prefix(appliance_id: str) -> str:
    """What all markers of one appliance begin with."""
    return f"holdfast-{appliance_id}-"
