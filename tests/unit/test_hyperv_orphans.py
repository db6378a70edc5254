"""What the clean-up of a Hyper-V host removes, strikes off, and only points out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from appliance.base.clock import SystemClock
from appliance.base.ids import RunId
from appliance.sources.contract import Orphan
from appliance.sources.hyperv import HypervSource, HypervTools
from appliance.sources.hyperv_host import HypervHost
from appliance.sources.hyperv_orphans import checkpoints_before, remove_orphans
from appliance.sources.intents import Made, OpenIntent
from hyperv.checkpoints import list_checkpoints
from hyperv.errors import ScriptError
from hyperv.marker import Marker, Purpose
from tests.support.fake_hyperv_session import quick_patience
from tests.support.hyperv_world import APPLIANCE, OURS, VM, World

RUN = RunId(OURS.run_id)


@dataclass
class Journal:
    """Intents of dead runs; `closed` are their numbers."""

    open: list[OpenIntent]
    closed: list[int] = field(default_factory=list)

    def record(self, kind: Made, run_id: RunId, target: str, name: str, detail: str = "") -> int:
        raise AssertionError("nothing is made by a clean-up")

    def complete(self, intent: int, made: str) -> None:
        raise AssertionError("nothing is made by a clean-up")

    def close(self, intent: int) -> None:
        self.closed.append(intent)

    def abandoned(self) -> Sequence[OpenIntent]:
        return self.open


def intent(kind: Made, *, number: int = 1, made: str | None = None, detail: str = "") -> OpenIntent:
    return OpenIntent(
        id=number,
        kind=kind,
        run_id=RUN,
        target=VM,
        detail=detail,
        name=OURS.text,
        made=made,
    )


def clean(world: World, *intents: OpenIntent) -> tuple[list[Orphan], Journal]:
    journal = Journal(list(intents))
    orphans = remove_orphans(
        [world.session()],
        APPLIANCE,
        journal,
        lambda: [],
        quick_patience(),
        has_reference_points=True,
    )
    return orphans, journal


def test_a_named_checkpoint_goes_and_its_entry_too() -> None:
    """Also without an entry: the marker is enough."""
    world = World(checkpoints={"cp1": OURS.text})
    orphans, journal = clean(world, intent(Made.SNAPSHOT, made="cp1"))
    assert [(each.run_id, each.failure) for each in orphans] == [(RUN, "")]
    assert world.checkpoints == {} and journal.closed == [1]
    world = World(checkpoints={"cp1": OURS.text})
    assert clean(world)[0] and world.checkpoints == {}


def test_an_entry_stays_while_its_checkpoint_resists() -> None:
    """The next clean-up finds it again."""
    world = World(
        checkpoints={"cp1": OURS.text}, errors={"remove_checkpoint": [ScriptError("in use")]}
    )
    [orphan], journal = clean(world, intent(Made.SNAPSHOT, made="cp1"))
    assert "in use" in orphan.failure and journal.closed == []


def test_a_checkpoint_without_a_name_is_pointed_out_and_not_removed() -> None:
    """The run was killed between making and naming it, or it is another product's."""
    world = World(checkpoints={"foreign": "another product"})
    before = checkpoints_before(list_checkpoints(world.session(), VM, quick_patience()))
    world.checkpoints["cp1"] = "web - Backup"
    [orphan], journal = clean(world, intent(Made.SNAPSHOT, detail=before))
    assert "cp1" in orphan.what and "by hand" in orphan.failure
    assert set(world.checkpoints) == {"foreign", "cp1"} and journal.closed == []
    del world.checkpoints["cp1"]
    orphans, journal = clean(world, intent(Made.SNAPSHOT, detail=before))
    assert orphans == [] and journal.closed == [1]


def test_an_entry_of_what_never_came_to_be_is_struck_off() -> None:
    """A shadow copy's entry says nothing of checkpoints."""
    world = World(checkpoints={"foreign": "another product"})
    orphans, journal = clean(world, intent(Made.SNAPSHOT))
    assert orphans == [] and journal.closed == [1] and set(world.checkpoints) == {"foreign"}


def test_a_reference_point_of_ours_stays_and_those_that_are_gone_are_forgotten() -> None:
    """The next backup asks the one; nobody can name one whose making was not confirmed."""
    world = World(points=["rp0"])
    orphans, journal = clean(
        world,
        intent(Made.REFERENCE_POINT, number=1, made="rp0"),
        intent(Made.REFERENCE_POINT, number=2, made="rp-gone"),
        intent(Made.REFERENCE_POINT, number=3),
    )
    assert orphans == [] and world.points == ["rp0"] and journal.closed == [2, 3]


def test_an_unfinished_vm_goes_before_its_files_and_a_session_keeps_its_own() -> None:
    """By the mark in its notes; VMs of recovery sessions, of others and of nobody stay."""
    restore = Marker(appliance_id=APPLIANCE, run_id=OURS.run_id, purpose=Purpose.RESTORE)
    session = Marker(appliance_id=APPLIANCE, run_id="instant-0a1b2c3d", purpose=Purpose.RESTORE)
    other = Marker(
        appliance_id="ffffffff-0000-4000-8000-000000000000",
        run_id=OURS.run_id,
        purpose=Purpose.RESTORE,
    )
    kept = {
        "session": session.text,
        "other": other.text,
        "quoted": f"said {restore.text.replace('0315', '0316')}s",
        "plain": "of the sales people",
    }
    world = World(notes={**kept, "unfinished": f"{restore.text} "}, disk_files=[restore.text])
    orphans, journal = clean(world, intent(Made.VM))
    assert world.notes == kept and world.disk_files == []
    assert [orphan.failure for orphan in orphans] == ["", ""]
    assert journal.closed == [1]


def test_files_of_a_vm_that_could_not_be_removed_stay_for_the_next_time() -> None:
    """So does the entry of the journal."""
    restore = Marker(appliance_id=APPLIANCE, run_id=OURS.run_id, purpose=Purpose.RESTORE)
    world = World(
        notes={"unfinished": restore.text},
        disk_files=[restore.text],
        errors={
            "remove_vm": [ScriptError("access")],
            "remove_disk_files": [ScriptError("it is in use", reason="still-attached")],
        },
    )
    orphans, journal = clean(world, intent(Made.VM))
    assert all(orphan.failure for orphan in orphans) and journal.closed == []
    orphans, journal = clean(world, intent(Made.VM))
    assert not any(orphan.failure for orphan in orphans) and journal.closed == [1]


@pytest.mark.parametrize(("others", "closed"), [([], [1, 2]), (["HV9"], [])])
def test_nothing_is_struck_off_while_a_node_of_the_cluster_cannot_be_asked(
    others: list[str], closed: list[int]
) -> None:
    """Also one that nobody registered: the VM, with what was made of it, may be there."""
    session = World().session()
    session.handlers["list_cluster"] = lambda _given: {
        "name": "CLU1",
        "nodes": [{"name": name, "state": 0} for name in ("HV1", *others)],
        "vms": [],
        "volumes": [],
    }
    facts = SimpleNamespace(computer_name="HV1", cluster="CLU1", reference_points=True)
    host = SimpleNamespace(name="clu1", session=session, facts=facts, others=())
    journal = Journal(
        [
            intent(Made.SNAPSHOT, number=1, made="cp0"),
            intent(Made.REFERENCE_POINT, number=2, made="rp0"),
        ]
    )
    tools = HypervTools(wait=lambda _s: None)
    source = HypervSource(cast(HypervHost, host), journal, APPLIANCE, SystemClock(), tools)
    assert source.remove_orphans(lambda: []) == []
    assert journal.closed == closed
