"""What `hyperv/` found, as reasons of the appliance; the codes stand where the library makes them.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from appliance.base.reasons import Reason
from hyperv.findings import Finding, Weight


def reason(found: Finding) -> Reason:
    return Reason.relayed(
        found.code, found.text, found.next_step, warning=found.weight is Weight.WARNING
    )


def reasons(findings: Iterable[Finding]) -> tuple[Reason, ...]:
    return tuple(reason(found) for found in findings)
