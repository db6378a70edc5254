"""What was noticed on the way: a code, a sentence, a next step, and how much it weighs.

Every fallback, refusal and warning of this library is one of these, so that a caller can show all
of them alike. Failures are errors, not findings.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Weight(StrEnum):
    NOTE = "note"  # worth saying, nothing to be done
    WARNING = "warning"  # works, but not as well as it could
    BLOCKING = "blocking"  # must be put right first


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    text: str
    next_step: str
    weight: Weight = Weight.WARNING
