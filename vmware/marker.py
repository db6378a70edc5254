"""Our mark on what we leave at a vCenter, so that a crash leaves nothing nameless behind.

A snapshot carries it as JSON in its description, and as a readable name; a VM under construction
carries it as its annotation, until it is finished. Only the JSON decides: names are for people,
and anybody may write either, so a text that is not exactly what `Marker` writes marks nothing.

A marker says whose the thing is (`appliance_id`), which run made it, and what for. `subject` binds
it to one VM (its instance uuid): a clone copies annotations, but gets a uuid of its own.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum

NAME_PREFIX = "holdfast-"

_FORMAT = 1
_TEXT_LIMIT = 2048  # characters; ours are a tenth of that
_NAME_LIMIT = 80  # characters of a snapshot's name, as vCenter has for names
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._:-]{0,99}")


class Purpose(StrEnum):
    BACKUP = "backup"  # the frozen state that is read
    TRACKING = "tracking"  # the stun cycle that starts changed block tracking
    RESTORE = "restore"  # a VM that is being made, or a state that is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """Raises ValueError: an id is not 1 to 100 letters, digits, `.`, `_`, `:` or `-`."""

    appliance_id: str
    run_id: str
    purpose: Purpose = Purpose.BACKUP
    subject: str | None = None

    def __post_init__(self) -> None:
        for text in (self.appliance_id, self.run_id, self.subject):
            if text is not None and not _ID.fullmatch(text):
                raise ValueError(f"not an id for a marker: {text!r}")

    @property
    def snapshot_name(self) -> str:
        """The name to hand to the API: `%`, `/` and `\\` escaped, as it wants them."""
        return escape_name(f"{NAME_PREFIX}{self.run_id}-{self.purpose}"[:_NAME_LIMIT])

    @property
    def text(self) -> str:
        """What `parse_marker` reads back."""
        fields: dict[str, object] = {
            "holdfast": _FORMAT,
            "appliance": self.appliance_id,
            "run": self.run_id,
            "purpose": self.purpose.value,
        }
        if self.subject is not None:
            fields["subject"] = self.subject
        return json.dumps(fields, separators=(",", ":"))


def parse_marker(text: object) -> Marker | None:
    """Return the marker that `text` is, None for anything else whatsoever. Never raises."""
    if not isinstance(text, str) or len(text) > _TEXT_LIMIT:
        return None
    try:
        fields = json.loads(text)
        marker = Marker(
            appliance_id=fields["appliance"],
            run_id=fields["run"],
            purpose=Purpose(fields["purpose"]),
            subject=fields.get("subject"),
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None
    return marker if marker.text == text.strip() else None


def escape_name(name: str) -> str:
    """Escape what a name may not hold literally: `%`, `/` and `\\` become %25, %2f and %5c."""
    return name.replace("%", "%25").replace("/", "%2f").replace("\\", "%5c")
