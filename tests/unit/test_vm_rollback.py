"""A roll-back that cannot do all of its work does none of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, RunContext
from appliance.jobs.rollback_checks import DisksDifferError
from appliance.jobs.rollback_contract import RollbackOptions, RollbackResult
from appliance.jobs.vm_restore import RestoreRoom
from appliance.jobs.vm_rollback import roll_back_vm
from appliance.sources.frozen import DiskIdentity
from appliance.targets import vsphere_existing
from appliance.targets.contract import (
    DiskSink,
    ExistingDisk,
    ExistingVm,
    NewVm,
    NewVmRequest,
    Power,
    TrackingNotResetError,
)
from tests.support.fake_source import FakeDisk, FakeSource, FakeVm
from tests.support.inventories import a_vm
from tests.support.scripted_vcenter import ScriptedVcenter
from tests.support.vm_backups import Place, place
from vmware.change_tracking import Tracking, TrackingOutcome
from vmware.errors import BusyError

SIZE = 1 << 20
OLD = random.Random(1).randbytes(SIZE)
NEW = random.Random(2).randbytes(SIZE)
INDEPENDENT = Reason("disk.independent", "disk 1 is independent", "make it dependent")


@dataclass
class Sink:
    data: bytearray

    @property
    def size_bytes(self) -> int:
        return len(self.data)

    def write_at(self, offset: int, data: bytes | memoryview) -> None:
        self.data[offset : offset + len(data)] = data

    def zero_at(self, offset: int, length: int) -> None:
        self.data[offset : offset + length] = bytes(length)

    def close(self) -> None:
        pass


@dataclass
class FakeTarget:
    """A `VmTarget` over the VMs of a `FakeSource`."""

    source: FakeSource
    not_reset: TrackingNotResetError | None = None
    power: Power = Power.ON
    name: str = "fake"

    def build(self, request: NewVmRequest, context: RunContext) -> AbstractContextManager[NewVm]:
        raise NotImplementedError  # a roll-back makes no VM

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        return ()

    def power_on(self, key: str, *, same_vm: bool, cancel: CancelToken) -> None:
        self.power = Power.ON

    def look(self, key: str) -> ExistingVm:
        vm = self.source.vms[int(key)]
        return ExistingVm(
            key=key,
            name=vm.name,
            power=self.power,
            has_snapshots=False,
            needs_consolidation=False,
            disks=tuple(
                ExistingDisk(
                    label=f"disk {number}",
                    identity=DiskIdentity(uuid=f"uuid-{number}", place=f"scsi0:{number}"),
                    size_bytes=len(disk.data),
                    file_name=f"{number}",
                )
                for number, disk in enumerate(vm.disks)
            ),
        )

    def power_off(self, key: str, *, within_s: float, cancel: CancelToken) -> None:
        self.power = Power.OFF

    def refusal(self, key: str, disk: ExistingDisk, run_id: RunId) -> Reason | None:
        return None

    def open_disk(self, key: str, disk: ExistingDisk, run_id: RunId) -> DiskSink:
        return Sink(self.source.vms[int(key)].disks[int(disk.file_name)].data)

    def reset_tracking(self, key: str, run_id: RunId) -> tuple[Reason, ...]:
        if self.not_reset is not None:
            raise self.not_reset
        return ()

    def roll_back_configuration(
        self, key: str, hardware: Mapping[str, Any], networks: Mapping[str, str]
    ) -> tuple[Reason, ...]:
        return ()


@dataclass
class World:
    place: Place
    source: FakeSource
    target: FakeTarget

    @property
    def disks(self) -> list[FakeDisk]:
        return self.source.vms[0].disks

    def roll_back(self, *, verify: bool = True) -> RollbackResult:
        point = self.place.repository.points.latest("web")
        assert point is not None
        catalog = self.place.catalog
        return roll_back_vm(
            RestoreRoom(
                repository=self.place.repository, runs=catalog.runs, run_locks=catalog.run_locks
            ),
            self.place.folder,
            self.source,
            self.target,
            point,
            RollbackOptions(power_off=True, verify=verify),
            RunContext.quiet(),
        )

    def contents(self) -> list[bytes]:
        return [bytes(disk.data) for disk in self.disks]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A VM of two disks with a recovery point, and both disks changed since."""
    source = FakeSource([FakeVm("web", [FakeDisk(bytearray(OLD)), FakeDisk(bytearray(OLD))])])
    with place(tmp_path) as opened:
        (result,) = opened.back_up(source)
        assert result.backup is not None, result.error
        for disk in source.vms[0].disks:
            disk.data[:] = NEW
        yield World(opened, source, FakeTarget(source))


def test_a_vm_gets_the_points_disks_back(world: World) -> None:
    """All of them, byte for byte."""
    assert world.roll_back().verified
    assert world.contents() == [OLD, OLD]


@pytest.mark.parametrize("verify", [True, False])
def test_a_disk_that_a_snapshot_no_longer_covers_is_not_passed_over(
    world: World, verify: bool
) -> None:
    """It could neither be compared nor written, so the VM would be half of the point and half of
    today, and be called verified. Nothing is written, and the VM runs on."""
    world.disks[1].left_out = INDEPENDENT
    with pytest.raises(DisksDifferError, match="disk 1 is independent"):
        world.roll_back(verify=verify)
    assert world.contents() == [NEW, NEW]
    assert world.target.power is Power.ON


def test_nothing_is_written_while_change_tracking_stands(world: World) -> None:
    """Change tracking does not see what a roll-back writes: the next scheduled backup would
    believe it, and keep a point that the VM never was."""
    world.target.not_reset = TrackingNotResetError("it could not be reset")
    with pytest.raises(TrackingNotResetError, match="could not be reset"):
        world.roll_back()
    assert world.contents() == [NEW, NEW]
    assert world.target.power is Power.ON


@pytest.mark.parametrize("stays_on", [True, False])
def test_tracking_of_a_vsphere_vm_that_stays_on_is_an_error(
    monkeypatch: pytest.MonkeyPatch, stays_on: bool
) -> None:
    """One that could only be turned off is void all the same: the next backup reads everything."""
    flags = [True, stays_on]
    monkeypatch.setattr(
        vsphere_existing, "read_vm", lambda session, key: a_vm(cbt_enabled=flags.pop(0))
    )
    off = TrackingOutcome(tracking=Tracking.OFF)
    monkeypatch.setattr(vsphere_existing, "reset_tracking", lambda *_: off)
    session = ScriptedVcenter().session()
    if stays_on:
        with pytest.raises(TrackingNotResetError):
            vsphere_existing.reset(session, "vm-1", "ours", "run-1")
    else:
        assert vsphere_existing.reset(session, "vm-1", "ours", "run-1") == ()


def test_tracking_of_a_vsphere_vm_that_cannot_be_reached_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever vSphere says against it."""

    def busy(*_: Any) -> TrackingOutcome:
        raise BusyError("another task")

    monkeypatch.setattr(vsphere_existing, "read_vm", lambda session, key: a_vm(cbt_enabled=True))
    monkeypatch.setattr(vsphere_existing, "reset_tracking", busy)
    with pytest.raises(TrackingNotResetError, match="another task"):
        vsphere_existing.reset(ScriptedVcenter().session(), "vm-1", "ours", "run-1")
