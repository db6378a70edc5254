"""The vSphere source against vcsim, which nobody here wrote: freezing, and cleaning up after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.base.consistency import Consistency
from appliance.base.ids import RunId, new_run_id
from appliance.base.run_context import RunContext
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.service.vm_sources import clean_up, open_sources
from appliance.sources.contract import FreezeRequest, SourceVm, VmSource
from appliance.sources.vsphere_errors import VsphereGoneError
from tests.support.vcsim import Vcsim, vcsim

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def simulator() -> Iterator[Vcsim]:
    with vcsim("-vm", "2") as running:
        yield running


@pytest.fixture
def catalog(tmp_path: Path, simulator: Vcsim) -> Iterator[Catalog]:
    with Catalog.open(tmp_path) as opened:
        record = HostRecord(
            name="vc",
            kind=HostKind.VSPHERE,
            address=simulator.address,
            port=simulator.port,
            user=simulator.user,
            fingerprint=simulator.fingerprint,
            server_id="vcsim",
            added_at=opened.clock.now(),
        )
        opened.hosts.add(record, Secret.of_text(simulator.password))
        yield opened


@pytest.fixture
def source(catalog: Catalog) -> Iterator[VmSource]:
    with open_sources(catalog) as opened:
        yield opened.sources[0]


def first_vm(source: VmSource) -> SourceVm:
    return min(source.list_vms(), key=lambda vm: vm.name)


def snapshots(simulator: Vcsim, vm: SourceVm) -> list[str]:
    words = simulator.govc("snapshot.tree", "-vm", vm.name).split()
    return [word for word in words if word != "."]  # a dot marks the current one


def freeze_once(catalog: Catalog, source: VmSource, vm: SourceVm, run_id: RunId) -> None:
    request = FreezeRequest(run_id=run_id, point_name=vm.name)
    with (
        catalog.run_locks.hold(run_id),
        source.freeze(vm, request, RunContext.quiet()) as frozen,
    ):
        assert frozen.consistency is Consistency.CRASH
        assert [disk.number for disk in frozen.disks] == [0]
        assert frozen.hardware["schema"] == "vsphere-1"
        assert frozen.instance == vm.identity.key


def test_a_frozen_vm_has_one_snapshot_of_ours_until_the_block_ends(
    catalog: Catalog, source: VmSource, simulator: Vcsim
) -> None:
    """It is in the journal while it stands; afterwards neither snapshot nor intent is left."""
    vm = first_vm(source)
    run_id = new_run_id(catalog.clock.now())
    request = FreezeRequest(run_id=run_id, point_name=vm.name)
    with catalog.run_locks.hold(run_id), source.freeze(vm, request, RunContext.quiet()):
        assert len(snapshots(simulator, vm)) == 1
        (intent,) = catalog.intents.open_intents()
        assert intent.made_moref is not None
    assert snapshots(simulator, vm) == []
    assert catalog.intents.open_intents() == []
    freeze_once(catalog, source, vm, new_run_id(catalog.clock.now()))


def test_a_run_that_fails_takes_its_snapshot_along_and_no_other(
    catalog: Catalog, source: VmSource, simulator: Vcsim
) -> None:
    """Whatever ends the block; a snapshot that a person made stays."""
    vm = first_vm(source)
    simulator.govc("snapshot.create", "-vm", vm.name, "-m=false", "before-the-update")
    try:
        run_id = new_run_id(catalog.clock.now())
        request = FreezeRequest(run_id=run_id, point_name=vm.name)
        with (
            pytest.raises(RuntimeError),
            catalog.run_locks.hold(run_id),
            source.freeze(vm, request, RunContext.quiet()),
        ):
            raise RuntimeError("the run broke")
        assert snapshots(simulator, vm) == ["before-the-update"]
    finally:
        simulator.govc("snapshot.remove", "-vm", vm.name, "*")


def test_a_vm_that_has_taken_a_gone_ones_id_is_not_touched(
    catalog: Catalog, source: VmSource, simulator: Vcsim
) -> None:
    """An ESXi host gives ids again; a run may wait for its turn for hours. The stranger would be
    backed up as the VM that is gone."""
    vm = first_vm(source)
    gone = replace(vm, identity=replace(vm.identity, instance_uuid="50220000-gone"))
    run_id = new_run_id(catalog.clock.now())
    with (
        pytest.raises(VsphereGoneError, match="is gone"),
        catalog.run_locks.hold(run_id),
        source.freeze(gone, FreezeRequest(run_id=run_id, point_name=vm.name), RunContext.quiet()),
    ):
        pass
    assert snapshots(simulator, vm) == []
    assert catalog.intents.open_intents() == []


def test_clean_up_removes_what_dead_runs_left_and_nothing_else(
    catalog: Catalog, source: VmSource, simulator: Vcsim
) -> None:
    """A snapshot of a living run and one that a person made stay where they are."""
    vm = first_vm(source)
    dead, living = (new_run_id(catalog.clock.now()) for _ in range(2))
    simulator.govc("snapshot.create", "-vm", vm.name, "-m=false", "by-hand")
    with catalog.run_locks.hold(living):
        left = source.freeze(vm, FreezeRequest(run_id=dead, point_name=vm.name), RunContext.quiet())
        left.__enter__()  # and its process was killed: nobody ever leaves the block
        with source.freeze(
            vm, FreezeRequest(run_id=living, point_name=vm.name), RunContext.quiet()
        ):
            assert len(snapshots(simulator, vm)) == 3
            orphans = clean_up(catalog, [source])
            assert [(orphan.run_id, orphan.failure) for orphan in orphans] == [(dead, "")]
            assert len(snapshots(simulator, vm)) == 2
            assert {intent.run_id for intent in catalog.intents.open_intents()} == {living}
    assert snapshots(simulator, vm) == ["by-hand"]
    simulator.govc("snapshot.remove", "-vm", vm.name, "*")
    assert clean_up(catalog, [source]) == []
