"""Reference points of a Hyper-V VM whose disks are about to be written from outside."""

from __future__ import annotations

from collections.abc import Sequence

from appliance.base.ids import RunId
from appliance.sources.hyperv_disks import change_id_of, journaled_points
from appliance.sources.intents import Made, OpenIntent
from appliance.targets.hyperv_existing import reset_tracking
from hyperv.errors import ScriptError
from tests.support.hyperv_world import OURS, VM, World

BACKUP = RunId(OURS.run_id)
ROLL_BACK = RunId("20261121T041500Z-ba9876543210")


class Journal:
    def __init__(self) -> None:
        self.entries: dict[int, OpenIntent] = {}

    def record(self, kind: Made, run_id: RunId, target: str, name: str, detail: str = "") -> int:
        number = len(self.entries) + 1
        self.entries[number] = OpenIntent(
            id=number, kind=kind, run_id=run_id, target=target, detail=detail, name=name
        )
        return number

    def complete(self, intent: int, made: str) -> None:
        old = self.entries[intent]
        self.entries[intent] = OpenIntent(
            id=intent,
            kind=old.kind,
            run_id=old.run_id,
            target=old.target,
            detail=old.detail,
            name=old.name,
            made=made,
        )

    def close(self, intent: int) -> None:
        del self.entries[intent]

    def abandoned(self) -> Sequence[OpenIntent]:
        return list(self.entries.values())


def journal_of_a_backup() -> Journal:
    journal = Journal()
    journal.complete(journal.record(Made.REFERENCE_POINT, BACKUP, VM, OURS.text), "rp0")
    return journal


def test_a_reference_point_goes_before_the_disks_are_written() -> None:
    """The host does not know of what is written from outside."""
    world, journal = World(points=["rp0"]), journal_of_a_backup()
    assert reset_tracking(world.session(), VM, journal, ROLL_BACK) == ()
    assert world.points == [] and not journal.entries


def test_a_reference_point_that_resists_is_asked_by_nobody() -> None:
    """Its list would lack what is written now; it stays in the journal, to be removed later."""
    world = World(points=["rp0"], errors={"remove_reference_point": [ScriptError("in use")]})
    journal = journal_of_a_backup()
    [reason] = reset_tracking(world.session(), VM, journal, ROLL_BACK)
    assert "in use" in reason.text
    [left] = journaled_points(journal, VM)
    assert left.made == "rp0" and change_id_of(left.run_id) != change_id_of(BACKUP)
