"""Backups of the VMs of a practice failover cluster, which move when they like."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from appliance.base.backoff import Backoff
from appliance.base.consistency import Consistency
from appliance.catalog.runs import RunOutcome
from appliance.jobs.vm_backup import VmResult
from appliance.sources import hyperv_freeze, hyperv_recovery_checkpoint, hyperv_smb_reader
from hyperv import checkpoints
from hyperv.checkpoints import BackupType, Level, list_checkpoints
from hyperv.marker import Marker
from hyperv.smb_files import SmbConnection, SmbLogin
from lab.guests import GuestKind, build
from lab.hyperv_host.cluster import VOLUME, PracticeCluster
from lab.hyperv_host.virtual_machine import HypervVm
from tests.support.hyperv_backups import (
    HOST,
    HypervAppliance,
    disk_digest,
    hyperv_appliance,
    write_disk,
)
from tests.support.hyperv_lab import PATIENCE, HypervLab, hyperv_cluster, session_with

pytestmark = pytest.mark.integration

MIB = 1 << 20


@dataclass(frozen=True)
class Here:
    cluster: PracticeCluster
    lab: HypervLab
    appliance: HypervAppliance
    vm: HypervVm

    def back_up(self, **options: Any) -> VmResult:
        [result] = self.appliance.back_up("web", **options)
        return result

    def move(self) -> str:
        """To the node that has it not; return that."""
        to = "HV2" if self.cluster.owner(self.vm) == "HV1" else "HV1"
        self.cluster.move(self.vm, to)
        return to

    def points(self) -> int:
        """Reference points of the VM, on all nodes."""
        vm_id = self.vm.settings.vm_id
        return sum(
            point.vm_id == vm_id
            for host in self.cluster.hosts.values()
            for point in host.host.reference_points()
        )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A VM on the shared volume, off: what its guest would write is written by the test."""
    with hyperv_cluster(tmp_path_factory.mktemp("volumes")) as (cluster, lab):
        vm = lab.add_tiny("web", start=False, folder=VOLUME)
        with hyperv_appliance(lab) as appliance:
            yield Here(cluster, lab, appliance, vm)


@pytest.fixture(autouse=True)
def nothing_is_left(here: Here) -> Iterator[None]:
    """After every test: no checkpoint on any node, the VM on its own disk file again."""
    yield
    for host in here.cluster.hosts.values():
        with session_with(host) as session:
            assert list_checkpoints(session, "", PATIENCE) == []
    with here.vm.opened_disks() as disks:
        assert [len(disk.paths) for disk in disks.values()] == [1]
    with here.appliance.catalog() as catalog:
        open_intents = [each.kind for each in catalog.intents.open_intents()]
    assert set(open_intents) <= {"reference-point"}


def test_one_registration_shows_and_backs_up_the_vms_of_all_nodes(here: Here) -> None:
    """Each once, with the node that it belongs to, local ones too."""
    node = here.cluster.hosts["HV2"].host
    local = node.add_guest("local", build(GuestKind.TINY), memory_mib=64)
    try:
        here.cluster.move(here.vm, "HV2")
        tested = here.appliance.holdfast("host", "test", HOST)
        assert (tested["cluster_nodes"], tested["missing_nodes"]) == (["HV1", "HV2"], {})
        listed = {each["vm"]: each for each in here.appliance.holdfast("vm", "list")}
        assert {name: each["esxi_host"] for name, each in listed.items()} == {
            "web": "HV2",
            "local": "HV2",
        }
        results = {result.vm: result for result in here.appliance.back_up("*")}
        assert {name: each.status for name, each in results.items()} == {
            "web": RunOutcome.SUCCESS,
            "local": RunOutcome.SUCCESS,
        }
        assert here.appliance.stored("local") == disk_digest(local)
    finally:
        node.remove_vm(local)


def test_a_vm_that_moved_between_backups_is_read_by_what_changed(here: Here) -> None:
    """Its chain goes on: the same VM, its reference point, and no second one."""
    here.back_up()
    for _ in range(2):
        write_disk(here.vm, 100 * MIB, random.randbytes(MIB))
        here.move()
        result = here.back_up()
        assert result.backup is not None, result.error
        [disk] = result.backup.disks
        assert (disk.mode, disk.image.read_bytes) == ("changed", MIB), result.reasons
        assert here.appliance.stored("web") == here.appliance.frozen["web", 0]
        assert here.points() == 1


@pytest.mark.parametrize(
    ("module", "step"),
    [
        (hyperv_recovery_checkpoint, "take_checkpoint"),
        (hyperv_recovery_checkpoint, "read_disks"),
        (hyperv_freeze, "capture_vm"),
        (checkpoints, "_name"),
    ],
)
def test_a_vm_that_moves_while_it_is_frozen_is_tried_again_where_it_is(
    here: Here, monkeypatch: pytest.MonkeyPatch, module: ModuleType, step: str
) -> None:
    """With a typed error, and without a checkpoint on either node: that of the first attempt goes
    before the second one begins."""
    monkeypatch.setattr(module, step, moving_first(here, getattr(module, step)))
    failed = here.back_up()
    assert failed.error is not None and failed.error.code == "hyperv.moved", failed
    assert failed.error.retryable
    assert here.vm.checkpoints == []
    monkeypatch.undo()
    monkeypatch.setattr(module, step, moving_first(here, getattr(module, step)))
    result = here.back_up(backoff=Backoff(attempts=2, first_s=0.01, most_s=0.01))
    assert result.backup is not None, result.error
    assert result.attempts == 2
    assert here.appliance.stored("web") == here.appliance.frozen["web", 0]
    assert here.points() == 1


def test_a_running_vm_that_moves_while_it_is_read_is_backed_up(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was frozen stays so; the checkpoint becomes a reference point on the new node, and the
    next backup builds on it. The guest runs on."""
    here.vm.start()
    here.lab.wait_ready(here.vm)
    here.lab.say(here.vm, "change 1", "CHANGED")
    reader = hyperv_smb_reader.SmbDiskReader
    moved: list[str] = []
    monkeypatch.setattr(reader, "read_at", moving_first(here, reader.read_at, moved))
    monkeypatch.setattr(reader, "read_into", moving_first(here, reader.read_into, moved))
    before = here.cluster.owner(here.vm)
    result = here.back_up()
    assert result.backup is not None, result.error
    assert (result.attempts, here.cluster.owner(here.vm) != before) == (1, True)
    assert result.backup.manifest.consistency is Consistency.APPLICATION
    assert here.appliance.stored("web") == here.appliance.frozen["web", 0]
    monkeypatch.undo()
    here.lab.say(here.vm, "change 1", "CHANGED")
    again = here.back_up()
    assert again.backup is not None, again.error
    assert [disk.mode for disk in again.backup.disks] == ["changed"]
    assert here.appliance.stored("web") == here.appliance.frozen["web", 0]
    assert here.points() == 1
    here.vm.turn_off()


@pytest.mark.parametrize("coordinator", ["HV1", "HV2"])
def test_a_shared_volume_is_read_through_its_coordinator(
    here: Here, monkeypatch: pytest.MonkeyPatch, coordinator: str
) -> None:
    """Whoever owns the VM; and through the owner when the coordinator is not registered."""
    here.cluster.move(here.vm, "HV1")
    here.cluster.coordinator = coordinator
    asked: list[int] = []

    def connect(login: SmbLogin) -> SmbConnection:
        asked.append(login.port)
        return SmbConnection(login)

    monkeypatch.setattr(hyperv_smb_reader, "SmbConnection", connect)
    assert here.back_up().backup is not None
    assert set(asked) == {here.cluster.hosts[coordinator].samba.port}
    asked.clear()
    here.cluster.coordinator = "HV3"
    assert here.back_up().backup is not None
    assert set(asked) == {here.cluster.hosts["HV1"].samba.port}
    here.cluster.coordinator = "HV1"


def test_a_checkpoint_of_a_killed_run_is_removed_from_the_node_it_went_to(here: Here) -> None:
    """By its marker, wherever the VM is by then."""
    with here.appliance.catalog() as catalog:
        marker = Marker(appliance_id=catalog.appliance_id, run_id="20261120T031500Z-0123456789ab")
    with session_with(here.cluster.hosts[here.cluster.owner(here.vm)]) as session:
        checkpoints.take_checkpoint(
            session,
            here.vm.settings.vm_id,
            marker,
            levels=(Level.CRASH,),
            backup_type=BackupType.COPY,
            patience=PATIENCE,
        )
    here.move()
    [orphan] = here.appliance.clean_up()
    assert (orphan.run_id, orphan.failure) == (marker.run_id, "")


def test_what_an_unreachable_node_owns_is_named_and_the_rest_is_backed_up(
    tmp_path: Path,
) -> None:
    """Also when it is the one that the registration begins with; nothing is left out silently."""
    with (
        hyperv_cluster(tmp_path) as (cluster, lab),
        hyperv_appliance(lab) as appliance,
    ):
        lost = lab.add_tiny("lost", start=False, folder=VOLUME)
        web = lab.add_tiny("web", start=False, folder=VOLUME)
        cluster.move(web, "HV2")
        cluster.cut_off("HV1")
        listed = {each["vm"]: each for each in appliance.holdfast("vm", "list")}
        [obstacle] = listed["lost"]["obstacles"]
        assert obstacle["code"] == "vm.node-not-asked"
        results = {result.vm: result for result in appliance.back_up("*")}
        assert results["web"].status is RunOutcome.SUCCESS, results["web"].error
        assert results["lost"].error is not None
        assert "HV1" in str(results["lost"].error)
        assert cluster.owner(lost) == "HV1"


def moving_first(
    here: Here, step: Callable[..., Any], moved: list[str] | None = None
) -> Callable[..., Any]:
    """The step, before whose first call the VM goes to the other node; `moved`: it has gone."""
    moved = [] if moved is None else moved

    def moving(*given: Any, **named: Any) -> Any:
        if not moved:
            moved.append(here.move())
        return step(*given, **named)

    return moving
