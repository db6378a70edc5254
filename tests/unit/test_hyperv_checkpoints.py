"""Recovery checkpoints: what is made is named or gone, and what is not known is looked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hyperv.checkpoints import (
    BackupType,
    Level,
    TakenCheckpoint,
    remove_checkpoint,
    take_checkpoint,
    wait_until_idle,
)
from hyperv.errors import (
    AccessError,
    BusyError,
    CancelledError,
    CheckpointError,
    ConsistencyError,
    DeadlineError,
    GoneError,
    HypervError,
    MergeError,
    ProtocolError,
    ScriptError,
    UnreachableError,
)
from hyperv.inventory import list_vms
from hyperv.marker import Marker, Purpose, prefix
from hyperv.new_vm import unmark
from hyperv.orphans import look, remove
from hyperv.patience import Patience
from hyperv.reference_points import convert
from tests.support.fake_hyperv_session import FakeHypervSession, quick_patience
from tests.support.hyperv_world import APPLIANCE, OURS, VM, World


def take(
    world: World, *levels: Level, patience: Patience | None = None
) -> tuple[TakenCheckpoint, FakeHypervSession]:
    session = world.session()
    return take_by(session, *levels, patience=patience), session


def take_by(
    session: FakeHypervSession, *levels: Level, patience: Patience | None = None
) -> TakenCheckpoint:
    return take_checkpoint(
        session,
        VM,
        OURS,
        levels=levels or (Level.APPLICATION, Level.CRASH),
        backup_type=BackupType.COPY,
        patience=patience or quick_patience(),
    )


def test_a_checkpoint_is_made_and_named() -> None:
    """The first level is recorded, and the name is the marker."""
    world = World(checkpoints={"foreign": "another product", "user1": "before the update"})
    taken, session = take(world)
    assert (taken.level, taken.findings) == (Level.APPLICATION, ())
    assert world.checkpoints[taken.id] == OURS.text
    assert session.named("create_checkpoint")[0]["backup_type"] == "copy"


def test_a_guest_that_cannot_rest_gives_crash_consistency_if_that_is_allowed() -> None:
    """With a finding that says why; not allowed, nothing is left."""
    world = World(job_state=10, job_error="VSS failed")
    taken, _ = take(world)
    assert taken.level is Level.CRASH
    [finding] = taken.findings
    assert finding.code == "consistency.downgraded" and "VSS failed" in finding.text
    world = World(job_state=10)
    with pytest.raises(ConsistencyError):
        take(world, Level.APPLICATION)
    assert world.checkpoints == {}


@pytest.mark.parametrize("state", [3, 6])
def test_a_vm_that_does_not_run_is_not_asked_for_more_than_its_disks(state: int) -> None:
    """One call, and a note when more was wanted at least."""
    taken, session = take(World(state=state), Level.APPLICATION)
    assert (taken.level, [f.code for f in taken.findings]) == (Level.CRASH, ["vm.not-running"])
    assert len(session.named("create_checkpoint")) == 1


def test_an_account_without_the_right_is_no_reason_to_try_a_lower_level() -> None:
    """The error comes as it is."""
    world = World(errors={"create_checkpoint": [AccessError("no")]})
    with pytest.raises(AccessError):
        take(world)


def test_a_checkpoint_whose_making_was_not_confirmed_is_found() -> None:
    """The shell was lost while the host made it: it is ours, and made once."""
    world = World(lost={"create_checkpoint"}, busy_looks=5)
    taken, session = take(world)
    assert list(world.checkpoints.values()) == [OURS.text]
    assert taken.id in world.checkpoints and len(session.named("create_checkpoint")) == 1


def test_two_new_checkpoints_are_nobodys() -> None:
    """Another product took one at the same moment: none is taken for ours."""
    world = World()
    session = world.session()
    create = session.handlers["create_checkpoint"]

    def both(parameters: Mapping[str, Any]) -> Any:
        world.checkpoints["foreign"] = "another product"
        return create(parameters)

    session.handlers["create_checkpoint"] = both
    with pytest.raises(CheckpointError, match="another product") as caught:
        take_by(session)
    assert "foreign" in world.checkpoints
    assert "may have been made" in caught.value.__notes__[0]
    assert len(session.named("create_checkpoint")) == 1


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("create_checkpoint", DeadlineError("slow")),
        ("create_checkpoint", ProtocolError("cut off")),
        ("vm_state", UnreachableError("no route")),
        ("job_state", UnreachableError("no route")),
        ("job_state", DeadlineError("slow")),
        ("list_checkpoints", ScriptError("WMI")),
    ],
)
def test_a_host_that_goes_silent_while_it_makes_a_checkpoint_is_noted_at_the_error(
    script: str, error: HypervError
) -> None:
    """Nobody knows whether there is one, so the journal keeps its entry and no other is made."""
    world = World(lost={"create_checkpoint"} if script == "vm_state" else set())
    session = world.session()
    create = session.handlers["create_checkpoint"]

    def made(parameters: Mapping[str, Any]) -> Any:
        answer = create(parameters)
        world.errors[script] = [error]
        return world.errors[script].pop() if script == "create_checkpoint" else answer

    session.handlers["create_checkpoint"] = made
    with pytest.raises(type(error)) as caught:
        take_by(session)
    assert len(world.checkpoints) == 1 and len(session.named("create_checkpoint")) == 1
    assert "may have been made" in caught.value.__notes__[0]


def test_a_checkpoint_that_cannot_be_named_is_removed_again() -> None:
    """An unnamed one would be nobody's after a crash."""
    world = World(errors={"name_checkpoint": [ScriptError("no")]})
    with pytest.raises(ScriptError) as caught:
        take(world, Level.CRASH)
    assert world.checkpoints == {} and not getattr(caught.value, "__notes__", ())


def test_a_checkpoint_that_stays_is_noted_at_the_error() -> None:
    """So that the journal keeps its entry."""
    world = World(
        errors={"name_checkpoint": [ScriptError("no")], "remove_checkpoint": [ScriptError("no")]}
    )
    with pytest.raises(ScriptError) as caught:
        take(world, Level.CRASH)
    assert "still there" in caught.value.__notes__[0]


def test_a_cancel_while_the_host_works_leaves_nothing() -> None:
    """It is heeded once the checkpoint is made and named, and then it goes."""
    world = World()
    patience = Patience(
        is_cancelled=lambda: OURS.text in world.checkpoints.values(), wait=lambda _s: None
    )
    with pytest.raises(CancelledError):
        take(world, Level.CRASH, patience=patience)
    assert world.checkpoints == {}


def test_another_task_of_the_vm_is_waited_for() -> None:
    """And is an error that passes when it does not end."""
    world = World(busy_looks=3)
    wait_until_idle(world.session(), VM, quick_patience())
    with pytest.raises(BusyError):
        wait_until_idle(World(busy_looks=10**9).session(), VM, quick_patience())


def test_a_merge_that_does_not_end_is_said() -> None:
    """After the removal itself; one that is gone is no error."""
    world = World(checkpoints={"cp": OURS.text}, busy_looks=10**9)
    with pytest.raises(MergeError):
        remove_checkpoint(world.session(), VM, "cp", quick_patience())
    remove_checkpoint(World().session(), VM, "cp", quick_patience())


def test_a_checkpoint_becomes_a_reference_point() -> None:
    """Found among what is new, also when the answer was lost."""
    for lost in (set[str](), {"convert_to_reference_point"}):
        world = World(checkpoints={"cp": OURS.text}, points=["foreign"], lost=set(lost))
        made = convert(world.session(), VM, "cp", quick_patience())
        assert made.point is not None and made.point.id == "rp1"
        assert world.points == ["foreign", "rp1"] and made.findings == ()


@pytest.mark.parametrize("rct_ids", [(), ("",), ("rctX:1", "")])
def test_a_reference_point_without_an_id_for_every_disk_goes(rct_ids: tuple[str, ...]) -> None:
    """Nothing could be asked of it."""
    world = World(checkpoints={"cp": OURS.text}, rct_ids=rct_ids)
    made = convert(world.session(), VM, "cp", quick_patience())
    assert made.point is None and world.points == []
    assert [finding.code for finding in made.findings] == ["rct.no-reference-point"]


def test_a_conversion_that_fails_leaves_the_checkpoint_to_be_removed() -> None:
    """It is an error, and nothing was lost."""
    world = World(checkpoints={"cp": OURS.text})
    session = world.session()
    session.handlers["convert_to_reference_point"] = lambda _p: {
        "job_id": "",
        "reference_point_id": "",
    }
    with pytest.raises(CheckpointError, match="not converted"):
        convert(session, VM, "cp", quick_patience())
    assert "cp" in world.checkpoints


@pytest.mark.parametrize("error", [GoneError("it moved"), UnreachableError("no route")])
def test_a_reference_point_is_known_although_the_merge_could_not_be_watched(
    error: HypervError,
) -> None:
    """The VM went to another node, or the host fell silent: it is not left without a name."""
    world = World(checkpoints={"cp": OURS.text}, errors={"vm_state": [error]})
    made = convert(world.session(), VM, "cp", quick_patience())
    assert made.point is not None and world.points == [made.point.id]
    assert [finding.code for finding in made.findings] == ["checkpoint.not-merged"]


def test_only_what_carries_our_marker_is_an_orphan() -> None:
    """Not that of a living run, of another appliance, of another product or a user's."""
    alive = Marker(appliance_id=APPLIANCE, run_id="20261120T031500Z-aaaaaaaaaaaa")
    other = Marker(appliance_id=APPLIANCE.replace("0f", "ff"), run_id=OURS.run_id)
    world = World(
        checkpoints={
            "cp1": OURS.text,
            "cp2": alive.text,
            "cp3": other.text,
            "cp4": f"{OURS.text} ",
            "user5": OURS.text,
        }
    )
    session, patience = world.session(), quick_patience()
    found = look(session, APPLIANCE, patience)
    assert {each.id for each in found} == {"cp1", "cp2"}
    outcomes = remove(session, found, lambda run: run == OURS.run_id, patience)
    assert [(each.found.id, each.failure) for each in outcomes] == [("cp1", "")]
    assert set(world.checkpoints) == {"cp2", "cp3", "cp4", "user5"}


def test_an_orphan_that_resists_is_named_with_its_failure() -> None:
    """And stops no other."""
    world = World(
        checkpoints={"cp1": OURS.text}, errors={"remove_checkpoint": [ScriptError("in use")]}
    )
    session, patience = world.session(), quick_patience()
    [outcome] = remove(session, look(session, APPLIANCE, patience), lambda _r: True, patience)
    assert "in use" in outcome.failure


def test_a_marker_is_read_back_and_nothing_else_is_one() -> None:
    """It fits the names that Windows allows for a folder, and the limit of the scripts."""
    for purpose in Purpose:
        marker = Marker(appliance_id=APPLIANCE, run_id=OURS.run_id, purpose=purpose)
        assert Marker.parse(marker.text) == marker
        assert len(marker.text) <= 99 and marker.text.startswith(prefix(APPLIANCE))
    for text in ("", "holdfast-x", OURS.text + "x", OURS.text.upper(), "a" * 5000):
        assert Marker.parse(text) is None
    for run in ("", "a b", "a/b", "../x-y", "x" * 80):
        with pytest.raises(ValueError):
            Marker(appliance_id=APPLIANCE, run_id=run)


def test_a_restored_vm_does_not_carry_the_mark_that_its_original_had() -> None:
    """It was backed up while it ran in a recovery session, whose end must not find this one."""
    of_session = Marker(
        appliance_id=APPLIANCE, run_id="instant-0a1b2c3d", purpose=Purpose.RESTORE
    ).text
    session = World(notes={VM: OURS.text}).session()
    session.handlers["set_notes"] = lambda _given: {"id": VM}
    [vm] = list_vms(session, quick_patience())
    notes = f"of the sales people\n {of_session} since 2019"
    unmark(session, vm, OURS.text, notes, quick_patience())
    [told] = session.named("set_notes")
    assert told["notes"] == "of the sales people\n  since 2019"
