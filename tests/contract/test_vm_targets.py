"""What every `VmTarget` promises, on the practice vCenter and on the practice Hyper-V host."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.base.run_context import CancelToken, RunContext
from appliance.jobs.vm_restore import restore_run, wanted_disks
from appliance.targets.contract import NewVmRequest, Power, TargetError, VmTarget
from tests.support import hyperv_restoring, restoring
from tests.support.hyperv_backups import hyperv_appliance, write_disk
from tests.support.hyperv_lab import hyperv_lab
from tests.support.hyperv_restoring import HypervRestoring
from tests.support.lab_machines import done
from tests.support.needs import needs
from tests.support.restoring import Restoring
from tests.support.vm_lab import backing_up, vm_lab

pytestmark = pytest.mark.integration

MIB = 1 << 20
NAME = "made"


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A hypervisor with a VM `cold` that has one disk and a recovery point."""

    here: Restoring | HypervRestoring
    key: str  # of `cold`
    content: Callable[[str], bytes]  # of the first disk of the VM of this name
    left_overs: Callable[[], dict[str, Any]]
    remove: Callable[[str], None]

    @property
    def target(self) -> VmTarget:
        return self.here.opened.target

    @contextmanager
    def run(self) -> Iterator[NewVmRequest]:
        """A run, and what to ask of the target in it."""
        point = self.here.point("cold")
        with restore_run(self.here.room, self.target.name, NAME) as run_id:
            disks = wanted_disks(self.here.repository, point)
            yield NewVmRequest(run_id=run_id, name=NAME, hardware=point.hardware, disks=disks)


@contextmanager
def vsphere(folder: Any) -> Iterator[Bench]:
    needs("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "losetup")
    image = folder / "disk.raw"
    image.write_bytes(random.Random(5).randbytes(3 * MIB) + bytes(13 * MIB))
    with vm_lab() as lab:
        tools = restoring.appliance_tools(lab, folder / "root")
        cold = lab.add_machine("cold", image)
        with backing_up(lab, tools) as backup:
            (result,) = backup.back_up("cold")
            assert result.backup is not None, result.error

        def remove(name: str) -> None:
            done(lab.client_of(restoring.machine_named(lab, name)).Destroy_Task())

        with restoring.restoring(lab, tools) as here:
            yield Bench(
                here=here,
                key=lab.client_of(cold)._moId,
                content=lambda name: restoring.disk_content(lab, name),
                left_overs=lambda: restoring.left_overs(lab, here.catalog),
                remove=remove,
            )


@contextmanager
def hyperv(folder: Any) -> Iterator[Bench]:
    with hyperv_lab(folder) as lab:
        cold = lab.add_tiny("cold", start=False)
        write_disk(cold, 200 * MIB, random.Random(5).randbytes(MIB))
        with hyperv_appliance(lab) as appliance:
            [result] = appliance.back_up("cold")
            assert result.backup is not None, result.error
            with hyperv_restoring.hyperv_restoring(appliance) as here:
                yield Bench(
                    here=here,
                    key=cold.settings.vm_id,
                    content=lambda name: hyperv_restoring.disk_content(lab, name),
                    left_overs=lambda: hyperv_restoring.left_overs(here),
                    remove=lambda name: hyperv_restoring.remove(lab, name),
                )


@pytest.fixture(scope="module", params=[vsphere, hyperv], ids=lambda kind: kind.__name__)
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bench]:
    with request.param(tmp_path_factory.mktemp("bench")) as made:
        yield made


def fill(sink: Any) -> bytearray:
    """Write ascending, with gaps; what the disk is then."""
    noise, disk = random.Random(6), bytearray(sink.size_bytes)
    for offset, length in ((0, 4096), (4096, 65536), (MIB, 3 * MIB + 512), (9 * MIB, 512)):
        data = noise.randbytes(length)
        sink.write_at(offset, memoryview(data))
        disk[offset : offset + length] = data
    sink.zero_at(10 * MIB, MIB)
    sink.write_at(sink.size_bytes - 512, b"\xee" * 512)
    disk[-512:] = b"\xee" * 512
    return disk


def test_a_finished_vm_has_what_was_written_and_zeros_between(bench: Bench) -> None:
    """It is off, has no marks, and stays; nothing else is new."""
    before = bench.left_overs()
    with bench.run() as request:
        with bench.target.build(request, RunContext.quiet()) as vm:
            assert bench.left_overs() != before, "what is made is journalled"
            sink = vm.open_disk(0)
            disk = fill(sink)
            sink.close()
            sink.close()
            key = vm.finish()
            assert not vm.same_vm, "the original is there"
        assert bench.target.leftovers(request.run_id) == ()
    assert bench.content(NAME) == disk
    found = bench.target.look(key)
    assert (found.name, found.power, found.has_snapshots) == (NAME, Power.OFF, False)
    assert [each.size_bytes for each in found.disks] == [len(disk)]
    bench.remove(NAME)
    assert bench.left_overs() == before


def test_what_is_not_finished_is_gone(bench: Bench) -> None:
    """Left half written, or ended by an error, which is the one that is raised."""
    before = bench.left_overs()
    with bench.run() as request, bench.target.build(request, RunContext.quiet()) as vm:
        fill(vm.open_disk(0))
    assert bench.left_overs() == before
    with (
        pytest.raises(ZeroDivisionError),
        bench.run() as request,
        bench.target.build(request, RunContext.quiet()),
    ):
        raise ZeroDivisionError
    assert bench.left_overs() == before
    assert bench.target.leftovers(request.run_id) == ()


def test_a_disk_that_was_not_closed_is_no_vm(bench: Bench) -> None:
    """`finish` refuses it, and everything goes."""
    before = bench.left_overs()
    with (
        pytest.raises(TargetError),
        bench.run() as request,
        bench.target.build(request, RunContext.quiet()) as vm,
    ):
        vm.open_disk(0).write_at(0, b"x" * 512)
        vm.finish()
    assert bench.left_overs() == before


def test_a_disk_of_a_vm_is_written_in_any_order(bench: Bench) -> None:
    """Nothing else of it changes, and it is as it was when nothing is written."""
    target, disk = bench.target, bytearray(bench.content("cold"))
    (found,) = target.look(bench.key).disks
    with bench.run() as request:
        run_id = request.run_id
        assert target.refusal(bench.key, found, run_id) is None
        assert not [reason for reason in target.reset_tracking(bench.key, run_id) if reason.warning]
        sink = target.open_disk(bench.key, found, run_id)
        for offset, data in ((7 * MIB, b"b" * 4096), (0, b"a" * 512), (12 * MIB, b"c" * 65536)):
            sink.write_at(offset, data)
            disk[offset : offset + len(data)] = data
        sink.zero_at(MIB, MIB)
        disk[MIB : 2 * MIB] = bytes(MIB)
        sink.close()
        assert bench.content("cold") == disk
        target.open_disk(bench.key, found, run_id).close()
    assert bench.content("cold") == disk


def test_power_is_idempotent_and_a_vm_that_is_gone_is_an_error(bench: Bench) -> None:
    """The error is typed, whichever hypervisor it is."""
    bench.target.power_off(bench.key, within_s=1.0, cancel=CancelToken())
    assert bench.target.look(bench.key).power is Power.OFF
    for call in (
        lambda: bench.target.look("vm-4711"),
        lambda: bench.target.power_on("vm-4711", same_vm=True, cancel=CancelToken()),
    ):
        with pytest.raises(ApplianceError):
            call()
    assert bench.target.leftovers(RunId("20260101T000000Z-0123456789ab")) == ()
