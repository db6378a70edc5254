"""What `vmware/` found, as reasons of the appliance, and its errors with our own cancelling.

Findings, refusals and obstacles have the same three texts; their codes are documented where the
leaf library makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.sources.vsphere_errors import as_appliance_errors
from vmware.errors import CancelledError as VsphereCancelled
from vmware.findings import Finding, Weight


class ThreeTexts(Protocol):
    """Obstacle or Refusal."""

    @property
    def code(self) -> str: ...
    @property
    def text(self) -> str: ...
    @property
    def next_step(self) -> str: ...


def reason(found: ThreeTexts, *, warning: bool = True) -> Reason:
    return Reason.relayed(found.code, found.text, found.next_step, warning=warning)


def reasons(findings: Iterable[Finding]) -> tuple[Reason, ...]:
    return tuple(reason(found, warning=found.weight is not Weight.NOTE) for found in findings)


@contextmanager
def vsphere_calls(host: str, cancel: CancelToken | None = None) -> Iterator[None]:
    """Run calls of `vmware/`; what ends because `cancel` was asked for is our CancelledError."""
    with as_appliance_errors(host):
        try:
            yield
        except VsphereCancelled:
            if cancel is not None:
                cancel.check()
            raise
