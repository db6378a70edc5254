"""What the freeze of a VM says, whatever the hypervisor.

Thread model: pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from appliance.base.reasons import Reason
from appliance.sources.frozen import SkippedDisk


def no_disks(moment: str, skipped: Sequence[SkippedDisk]) -> Reason:
    """`moment`: what would have covered them, like "a snapshot"."""
    words = "; ".join(f"[{disk.reason.code}] {disk.reason.text}" for disk in skipped)
    return Reason(
        "vm.no-disks",
        f"no disk can be covered by {moment} ({words or 'the VM has none'})",
        "see what is said of each disk",
    )
