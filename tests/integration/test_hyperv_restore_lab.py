"""Recovery points become VMs again on the practice Hyper-V host: new ones, and the one they are of."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3

from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.jobs.rollback_checks import (
    DisksDifferError,
    HalfRolledBackError,
    VmHasSnapshotsError,
    VmRunsError,
)
from appliance.jobs.vm_rollback import RollbackMode
from appliance.repository.manifest import Manifest
from appliance.targets.contract import NoSuchPlaceError, NoWriterError, WantedVmPlace
from appliance.targets.hyperv_plan import NameTakenError
from lab.faults import FaultName
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import VmState
from lab.hyperv_host.windows_path import WindowsPath
from tests.support.holdfast_program import ROOT, environment
from tests.support.hyperv_backups import (
    HOST,
    HypervAppliance,
    disk_digest,
    hyperv_appliance,
    write_disk,
)
from tests.support.hyperv_lab import HypervLab, hyperv_lab
from tests.support.hyperv_restoring import HypervRestoring, hyperv_restoring, left_overs

pytestmark = pytest.mark.integration

MIB = 1 << 20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HypervLab]:
    with hyperv_lab(tmp_path_factory.mktemp("volumes")) as started:
        yield started


@pytest.fixture(scope="module")
def vm(lab: HypervLab) -> HypervVm:
    """Off: what its guest would write is written by the test, at once."""
    return lab.add_tiny("web", start=False)


@pytest.fixture(scope="module")
def appliance(lab: HypervLab, vm: HypervVm) -> Iterator[HypervAppliance]:
    with hyperv_appliance(lab) as made:
        write_disk(vm, 96 * MIB, random.Random(3).randbytes(3 * MIB))
        [result] = made.back_up("web")
        assert result.backup is not None, result.error
        yield made


@pytest.fixture
def here(appliance: HypervAppliance) -> Iterator[HypervRestoring]:
    appliance.lab.practice.faults.disarm()
    with hyperv_restoring(appliance) as opened:
        yield opened
    appliance.lab.practice.faults.disarm()


def named(lab: HypervLab, name: str) -> HypervVm:
    (found,) = [vm for vm in lab.practice.host.vms() if vm.settings.name == name]
    return found


def remove(lab: HypervLab, vm: HypervVm) -> None:
    """With its files, which are all in its own folder."""
    paths = [drive.path for drive in vm.settings.drives if drive.path is not None]
    lab.practice.host.remove_vm(vm)
    for path in paths:
        lab.practice.host.volumes.place(path).unlink()
        for folder in (path.folder, path.folder.folder):
            with contextlib.suppress(OSError):
                lab.practice.host.volumes.place(folder).rmdir()


def test_a_new_vm_has_the_points_disk_and_configuration(
    here: HypervRestoring, lab: HypervLab, vm: HypervVm
) -> None:
    """Byte by byte, and nothing but the VM is new: it carries no mark, nothing is shared."""
    before = left_overs(here)
    result = here.restore(here.point(), name="again")
    new = named(lab, "again")
    assert (result.transport, result.vm, result.key) == ("smb", "again", new.settings.vm_id)
    assert disk_digest(new) == here.digest() == disk_digest(vm)
    old = vm.settings
    assert (new.settings.generation, new.settings.processors, new.settings.memory) == (
        old.generation, old.processors, old.memory
    )  # fmt: skip
    assert [drive.slot for drive in new.settings.drives] == [drive.slot for drive in old.drives]
    assert [one.switch for one in new.settings.adapters] == [one.switch for one in old.adapters]
    assert {one.mac for one in new.settings.adapters}.isdisjoint({one.mac for one in old.adapters})
    assert new.settings.notes == old.notes
    assert new.settings.identity.bios_guid != old.identity.bios_guid, "the original is there"
    assert result.disks[0].written_bytes < 64 * MIB < result.disks[0].size_bytes
    remove(lab, new)
    assert left_overs(here) == before
