"""What a Hyper-V VM with whole disks was, before it is shut down to be copied off its session."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.targets import hyperv_storage
from appliance.targets.hyperv_storage import PassThroughStorage, Side

RUNNING, OFF = 2, 3


class Told:
    """A `Downtime`, in the order of all that is done."""

    has_begun = False

    def __init__(self, order: list[str]) -> None:
        self._order = order

    def begins(self) -> None:
        self._order.append("begins")

    def ends(self) -> None:
        self._order.append("ends")


@pytest.mark.parametrize(
    ("state", "expected"), [(RUNNING, ["begins", "shutdown"]), (OFF, ["shutdown"])]
)
def test_that_a_vm_runs_is_remembered_before_it_is_shut_down(
    monkeypatch: pytest.MonkeyPatch, state: int, expected: list[str]
) -> None:
    """So that whoever repeats a killed move starts it again; a VM that was off stays off."""
    order: list[str] = []

    def set_power(host: Any, vm_id: str, power: str, patience: Any) -> None:
        order.append(power)

    monkeypatch.setattr(hyperv_storage, "set_power", set_power)
    known = SimpleNamespace(
        disks=(), whole_disks={}, session_id="0a1b2c3d", new_disks=lambda folder: ()
    )
    side = SimpleNamespace(session=None, vm_folder="E:", known=known, patience=None)
    vm = SimpleNamespace(id="1", name="web", state=state)
    storage = PassThroughStorage(cast(Side, side))
    storage.move(cast(Any, vm), "E:\\kept", Told(order), allow_downtime=True)
    assert order == expected
