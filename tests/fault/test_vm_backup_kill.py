"""kill -9 of `holdfast` at 50 points of backups: the next start removes its debris, and only that.

The points are spread over three kinds of runs: the first one, which also turns tracking on; one
that reads changes; and one of a VM that carries a snapshot which a person made.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

import pytest
from pyVmomi import vim

from appliance.service.orphan_patrol import OrphanPatrol
from tests.support.check_repository import check_repository
from tests.support.killed_holdfast import Killer, killer
from tests.support.lab_machines import done, removed, snapped
from tests.support.needs import needs
from tests.support.vm_lab import Guest, InProcess, VmLab, backing_up, vm_lab

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

LEASE_TIMEOUT_S = 2.0  # the lease of a killed export cannot be given back, only run out
BACKUP = ("backup", "vm", "web", "--quiesce", "crash")


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("qemu-system-x86_64", "qemu-img")
    with vm_lab(lease_timeout_s=LEASE_TIMEOUT_S) as running:
        yield running


@pytest.fixture(scope="module")
def guest(lab: VmLab) -> Guest:
    return lab.add_guest("web")


@pytest.fixture(scope="module")
def here(lab: VmLab, guest: Guest) -> Iterator[InProcess]:
    with backing_up(lab) as opened:
        yield opened


@pytest.fixture(scope="module")
def program(lab: VmLab) -> Iterator[Killer]:
    with killer(lab.home) as running:
        yield running


def wait_for_leases(lab: VmLab) -> None:
    """Until those of killed runs have run out by themselves."""
    deadline_s = time.monotonic() + 60
    while lab.plane.lease_table.open_leases():
        assert time.monotonic() < deadline_s, "a lease does not run out"
        time.sleep(0.05)


def kill_at_points(
    here: InProcess,
    guest: Guest,
    program: Killer,
    *,
    count: int,
    before: Callable[[], None],
    expected: list[str],
) -> None:
    """Kill as many runs at points spread over a whole one; after each, clean up as a start does."""
    before()
    whole = program.run(*BACKUP)
    assert whole.exit_code in (0, 3), whole
    seed = random.SystemRandom().getrandbits(32)
    print(f"seed {seed}, {whole.points} points in a whole run")
    source = random.Random(seed)
    for number in range(count):
        wait_for_leases(here.lab)
        before()
        low, high = (whole.points * each // count for each in (number, number + 1))
        at = source.randrange(low, max(high, low + 1)) + 1
        ended = program.run(*BACKUP, kill_at=at)
        assert ended.killed or ended.points < at, f"point {at}: {ended}"
        for orphan in here.clean_up():
            assert not orphan.failure, f"point {at}: {orphan}"
        assert here.lab.snapshots_of(guest.machine) == expected, f"point {at}"
        assert here.catalog.intents.open_intents() == [], f"point {at}"
        assert not guest.vm.runtime.consolidationNeeded, f"point {at}"
    wait_for_leases(here.lab)
    (result,) = here.back_up("web")
    assert result.backup is not None, result.error
    check_repository(here.repository)


def test_a_first_backup_killed_anywhere_leaves_nothing(
    here: InProcess, guest: Guest, program: Killer
) -> None:
    """20 points, tracking turned off before each, so that the run turns it on."""

    def untracked() -> None:
        done(guest.vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=False)))
        removed(snapped(guest.vm))

    kill_at_points(here, guest, program, count=20, before=untracked, expected=[])
    assert here.stored("web") == here.frozen["web", 0]


def test_an_incremental_killed_anywhere_leaves_nothing(
    here: InProcess, guest: Guest, program: Killer
) -> None:
    """15 points, with new changes before each; the last point is right."""
    kill_at_points(here, guest, program, count=15, before=lambda: guest.write(1), expected=[])
    assert here.stored("web") == here.frozen["web", 0]


def test_a_snapshot_that_a_person_made_survives_every_kill(
    here: InProcess, guest: Guest, program: Killer
) -> None:
    """15 points; it is the only one that is left, and never touched."""
    by_hand = snapped(guest.vm, "before-the-update")
    try:
        kill_at_points(
            here,
            guest,
            program,
            count=15,
            before=lambda: guest.write(1),
            expected=["before-the-update"],
        )
        assert guest.vm.snapshot.rootSnapshotList[0].snapshot == by_hand
    finally:
        removed(by_hand)


def test_the_daemon_removes_what_a_killed_backup_left(
    here: InProcess, guest: Guest, program: Killer
) -> None:
    """At the start of the daemon, without anybody running a backup; a person's snapshot stays."""
    by_hand = snapped(guest.vm, "before-the-update")
    try:
        whole = program.run(*BACKUP)
        program.run(*BACKUP, kill_at=whole.points * 2 // 3)
        wait_for_leases(here.lab)
        patrol = OrphanPatrol(here.catalog)
        patrol.start()
        deadline_s = time.monotonic() + 60
        while here.lab.snapshots_of(guest.machine) != ["before-the-update"]:
            assert time.monotonic() < deadline_s, here.lab.snapshots_of(guest.machine)
            time.sleep(0.05)
        patrol.stop()
        assert here.catalog.intents.open_intents() == []
    finally:
        removed(by_hand)
