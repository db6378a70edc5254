"""Resilient change tracking of one disk: what was written between the moments of checkpoints.

A moment is the state of the disk when a checkpoint was taken; its id is what a reference point
carries. Changes since an id, up to the moment of a frozen file, are the union of what was written
in between, in whole grains. Starting over (a file swapped or edited behind the host's back, or
the fault switch) makes a new tracking identifier, and every older id is refused.

Thread model: the live disk's lock. Source: design notes on Hyper-V, section 4.
"""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass, field

from lab.esx.areas import Area, merged
from lab.hyperv_host.errors import ParameterError

GRAIN_BYTES = 32 * 1024
_ID = re.compile(r"rctX:((?:[0-9a-f]+:){5})(\d{8})")


def _new_identifier() -> str:
    return str(uuid.uuid4()).replace("-", ":") + ":"


@dataclass(slots=True)
class ResilientTracking:
    size_bytes: int
    identifier: str = field(default_factory=_new_identifier)
    written: set[int] = field(default_factory=set)  # grains since the last moment
    moments: list[frozenset[int]] = field(default_factory=list)

    def mark(self, offset: int, length: int) -> None:
        if length > 0:
            last = (offset + length - 1) // GRAIN_BYTES
            self.written.update(range(offset // GRAIN_BYTES, last + 1))

    def take_moment(self) -> int:
        """A checkpoint is taken; return the number of its moment."""
        self.moments.append(frozenset(self.written))
        self.written.clear()
        return len(self.moments)

    def start_over(self) -> None:
        self.identifier = _new_identifier()
        self.moments.clear()
        self.written.clear()

    def id_of(self, moment: int) -> str:
        return f"rctX:{self.identifier}{moment:08d}"

    def changes(self, limit_id: str, until: int) -> list[Area]:
        """Raises ParameterError: the id is not of this tracking, or later than the moment."""
        match = _ID.fullmatch(limit_id)
        since = int(match[2]) if match and match[1] == self.identifier else 0
        if not 0 < since <= until <= len(self.moments):
            raise ParameterError(f"the change tracking id {limit_id!r} is not known")
        grains: set[int] = set().union(*self.moments[since:until])
        areas = merged((grain * GRAIN_BYTES, GRAIN_BYTES) for grain in grains)
        if areas and sum(areas[-1]) > self.size_bytes:
            areas[-1] = (areas[-1][0], self.size_bytes - areas[-1][0])
        return areas
