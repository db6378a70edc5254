"""Why something was done in another way than the best one: a code, a sentence, a next step.

Every fallback, skip or slowdown carries one, and command line, API and UI show the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Reason:
    code: str
    text: str
    next_step: str
    warning: bool = True  # False: worth saying, nothing to be done

    @classmethod
    def relayed(cls, code: str, text: str, next_step: str, *, warning: bool = True) -> Self:
        """A finding of a leaf library as a reason; its code stands in that library's source."""
        return cls(code, text, next_step, warning)

    def as_json(self) -> dict[str, object]:
        return {
            "code": self.code,
            "text": self.text,
            "next_step": self.next_step,
            "warning": self.warning,
        }
