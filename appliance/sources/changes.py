"""What a source found out about the changes of a disk since an earlier state. Values."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.base.reasons import Reason
from appliance.blocks.extents import Extent
from appliance.sources.frozen import KnownDisk

OTHER_VM = Reason(
    "full.other-vm",
    "the parent point is of another VM of this name",
    "none: the next backup reads changed blocks again",
    warning=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What changed since an earlier state; None: everything may have, and why."""

    extents: tuple[Extent, ...] | None
    reasons: tuple[Reason, ...] = ()


def is_mistrusted(old: KnownDisk) -> bool:
    """Whether its change list failed an audit, and nobody has reset the tracking since."""
    return old.change_id is None and old.identity is not None and bool(old.identity.change_id)
