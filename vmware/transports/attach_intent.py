"""What is about to be attached to the appliance VM: written down before the call is made.

A device carries no marker, so the intent is what says, after a crash, that a disk on the appliance
is there because of us. `detail` is the text to keep in a journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from vmware.transports.scsi_slots import Slot

_DETAIL_LIMIT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachIntent:
    run_id: str
    appliance_moref: str
    slot: Slot
    file_name: str

    @property
    def detail(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))


Record = Callable[[AttachIntent], Callable[[], None]]
"""Keep the intent durably before returning; the result forgets it, once the disk is detached."""


def unrecorded(_: AttachIntent) -> Callable[[], None]:
    """A `Record` that keeps nothing."""
    return lambda: None


def parse_intent(detail: str) -> AttachIntent | None:
    """The intent that was kept; None for any other text. Never raises."""
    if len(detail) > _DETAIL_LIMIT:
        return None
    try:
        fields = json.loads(detail)
        slot = Slot(**{name: int(number) for name, number in fields.pop("slot").items()})
        intent = AttachIntent(slot=slot, **{name: str(text) for name, text in fields.items()})
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None
    return intent if intent.detail == detail else None
