"""Choosing a transport: the first that works, and every reason why the others did not."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from vmware.errors import CancelledError, UnreachableError, UnsupportedError, VsphereError
from vmware.transports.choice import NoTransportError, choose, ordered
from vmware.transports.contract import DiskReader, DiskRequest, OutOfDiskError, Refusal, check_plan

_REQUEST: Any = SimpleNamespace(disk=SimpleNamespace(label="Hard disk 1"))
_REFUSAL = Refusal(code="transport.no-slot", text="no slot is free", next_step="add a controller")


@dataclass
class _Way:
    name: str
    refuses: Refusal | None = None
    fails: VsphereError | None = None
    opened: list[str] = field(default_factory=list)

    def refusal(self, request: DiskRequest) -> Refusal | None:
        return self.refuses

    def open(self, request: DiskRequest) -> DiskReader:
        self.opened.append(self.name)
        if self.fails is not None:
            raise self.fails
        return f"reader of {self.name}"  # type: ignore[return-value]


def test_the_first_transport_that_opens_is_taken() -> None:
    """A better one that works is not passed over, and no worse one is tried."""
    best, worse = _Way("hot-add"), _Way("nfc-lease")
    chosen = choose([best, worse], _REQUEST)
    assert (chosen.name, chosen.reader, chosen.refusals) == ("hot-add", "reader of hot-add", ())
    assert worse.opened == []


def test_refusals_and_failed_openings_fall_through_and_are_kept() -> None:
    """The result says of each better way why it was not taken, in order."""
    failing = _Way("vddk", fails=UnreachableError("port 902 is closed"))
    chosen = choose([_Way("hot-add", refuses=_REFUSAL), failing, _Way("nfc-lease")], _REQUEST)
    assert chosen.name == "nfc-lease"
    assert [refused.transport for refused in chosen.refusals] == ["hot-add", "vddk"]
    assert chosen.refusals[0].refusal == _REFUSAL
    assert chosen.refusals[1].refusal.code == "vsphere.unreachable"
    assert chosen.refusals[1].refusal.text == "port 902 is closed"
    assert "network" in chosen.refusals[1].refusal.next_step


def test_no_transport_is_an_error_that_lists_every_reason() -> None:
    """It may be tried again when one of the failures may pass, and not otherwise."""
    firm = [_Way("hot-add", refuses=_REFUSAL), _Way("vddk", fails=UnsupportedError("no plugin"))]
    with pytest.raises(NoTransportError, match=r"no slot is free.*no plugin") as caught:
        choose(firm, _REQUEST)
    assert not caught.value.retryable
    assert len(caught.value.refusals) == 2
    with pytest.raises(NoTransportError) as caught:
        choose([*firm, _Way("nfc-lease", fails=UnreachableError("down"))], _REQUEST)
    assert caught.value.retryable
    with pytest.raises(NoTransportError, match="no transport is configured"):
        choose([], _REQUEST)


def test_cancelling_while_opening_ends_the_choice() -> None:
    """A cancelled run does not begin with the next transport."""
    worse = _Way("nfc-lease")
    with pytest.raises(CancelledError):
        choose([_Way("hot-add", fails=CancelledError("enough")), worse], _REQUEST)
    assert worse.opened == []


def test_the_preference_is_hot_add_vddk_datastore_lease() -> None:
    """Whatever order they are configured in; unknown ones come last."""
    ways = [_Way(name) for name in ("other", "nfc-lease", "datastore-https", "hot-add", "vddk")]
    names = [way.name for way in ordered(ways)]
    assert names == ["hot-add", "vddk", "datastore-https", "nfc-lease", "other"]


@pytest.mark.parametrize("planned", [[(0, 0)], [(8, 4), (0, 4)], [(0, 9), (8, 1)], [(90, 11)]])
def test_a_plan_that_is_not_one_is_refused(planned: list[tuple[int, int]]) -> None:
    """Empty, unsorted, overlapping or outside: a mistake of the caller that is named."""
    check_plan([(0, 8), (8, 1), (99, 1)], 100)
    with pytest.raises(OutOfDiskError):
        check_plan(planned, 100)
