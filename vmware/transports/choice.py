"""Which transport reads a disk: the first of a preference that neither refuses nor fails to open.

Every refusal is kept, so that a run can say why the better ways were not taken. The order is the
caller's; `PREFERENCE` is the one of the product (fast and random access first).

Thread model: stateless.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vmware.errors import CancelledError, VsphereError
from vmware.transports.contract import DiskReader, DiskRequest, Refusal, Transport

PREFERENCE = ("hot-add", "vddk", "datastore-https", "nfc-lease")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    transport: str
    refusal: Refusal


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    reader: DiskReader
    name: str
    refusals: tuple[Refused, ...]  # of the transports before it, in order


class NoTransportError(VsphereError):
    """No transport can read the disk; the message gives the reason of each."""

    code = "vsphere.transport.none"

    def __init__(self, message: str, refusals: tuple[Refused, ...], *, retryable: bool) -> None:
        super().__init__(message)
        self.refusals = refusals
        self.retryable = retryable  # at least one of them failed with an error that may pass


def ordered(transports: Iterable[Transport]) -> list[Transport]:
    """Sort by `PREFERENCE`; one that it does not name comes last."""
    place = {name: number for number, name in enumerate(PREFERENCE)}
    return sorted(transports, key=lambda transport: place.get(transport.name, len(place)))


def choose(transports: Iterable[Transport], request: DiskRequest) -> Chosen:
    """Open the disk with the first transport that can; the caller closes the reader.

    Raises:
        NoTransportError: none can; it carries every refusal.
        CancelledError: opening was cancelled; no other transport is tried.
    """
    refusals: list[Refused] = []
    may_pass = False
    for transport in transports:
        refusal = transport.refusal(request)
        if refusal is None:
            try:
                reader = transport.open(request)
            except CancelledError:
                raise
            except VsphereError as error:
                may_pass = may_pass or error.retryable
                refusal = of_error(error)
            else:
                return Chosen(reader=reader, name=transport.name, refusals=tuple(refusals))
        refusals.append(Refused(transport=transport.name, refusal=refusal))
    reasons = "; ".join(f"{refused.transport}: {refused.refusal.text}" for refused in refusals)
    raise NoTransportError(
        f"{request.disk.label} cannot be read ({reasons or 'no transport is configured'})",
        tuple(refusals),
        retryable=may_pass,
    )


def of_error(error: VsphereError) -> Refusal:
    """An `open` that failed, as a refusal; its docstring says what to do."""
    advice = " ".join((type(error).__doc__ or "").split())
    return Refusal(code=error.code, text=str(error), next_step=advice)
