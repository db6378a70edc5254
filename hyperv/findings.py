"""What was found on the way that is no error: a code, a sentence, a next step. Values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Weight(Enum):
    NOTE = "note"  # worth saying, nothing to be done
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    code: str
    text: str
    next_step: str
    weight: Weight = Weight.WARNING
