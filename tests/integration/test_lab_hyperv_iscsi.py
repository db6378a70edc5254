"""The practice Hyper-V host's initiator: a guest runs from our LUN, and moves away from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict

from hyperv.checkpoints import Level, read_disks, remove_checkpoint
from hyperv.errors import ScriptError
from hyperv.script_types import Answer
from lab.guests import GuestKind, build, read_journal
from tests.support.hyperv_lab import PATIENCE, HypervLab, hyperv_lab
from tests.support.iscsi_clients import needs_iscsi
from tests.support.iscsi_lun import SERIAL, ServedLun, served_lun

pytestmark = pytest.mark.integration
MARKER = "holdfast-test-iscsi-restore"


class Anything(Answer):
    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[HypervLab]:
    needs_iscsi()
    with hyperv_lab(tmp_path / "volumes") as started:
        yield started


@pytest.fixture
def lun(lab: HypervLab, tmp_path: Path) -> Iterator[ServedLun]:
    """Gone before the host is, as an appliance that died."""
    with served_lun(build(GuestKind.TINY), tmp_path) as served:
        yield served


def call(lab: HypervLab, name: str, parameters: Mapping[str, Any]) -> Any:
    return lab.session.call(name, parameters, Anything)


def _new_vm(lab: HypervLab) -> str:
    memory = 256 << 20
    made = call(
        lab,
        "new_vm",
        {
            "marker": MARKER,
            "name": "recovered",
            "folder": "C:\\ProgramData\\Holdfast\\vms",
            "generation": 1,
            "version": "",
            "processors": 1,
            "nested": False,
            "memory": {
                "startup_bytes": memory,
                "minimum_bytes": memory,
                "maximum_bytes": memory,
                "dynamic": False,
            },
            "secure_boot": False,
            "secure_boot_template": "",
            "tpm": False,
            "scsi_controllers": 1,
            "adapters": [
                {"name": "net", "switch_name": "", "mac": "", "legacy": False, "vlan_id": 0}
            ],
            "identity": None,
        },
    )
    return str(made.id)


def _attach(lab: HypervLab, vm_id: str, folder: str) -> None:
    slot = {"controller": "ide", "controller_number": 0, "location": 0}
    path = {"path": f"{folder}\\disk-1.vhdx", "disk_number": -1, "boot_first": False}
    call(lab, "attach_disk", {"vm_id": vm_id, "marker": MARKER, **slot, **path})


def test_a_guest_runs_from_a_lun_and_moves_to_the_hosts_storage(
    lab: HypervLab, lun: ServedLun
) -> None:
    """Log in, mount, boot, checkpoint, move while it writes, and take everything away again."""
    with pytest.raises(ScriptError, match="Authentication failure"):
        call(lab, "connect_iscsi", lun.connection("another secret.."))
    assert call(lab, "connect_iscsi", lun.connection()).connected
    online = {"serial": SERIAL, "marker": MARKER, "mount": True}
    folder = call(lab, "online_disk", online).folder
    assert call(lab, "online_disk", online).folder == folder
    place = lab.practice.host.volumes.folder / "C" / "ProgramData" / "Holdfast" / "volumes"
    assert [one.name for one in place.joinpath(MARKER).iterdir()] == ["disk-1.vhdx"]

    vm_id = _new_vm(lab)
    with pytest.raises(ScriptError, match="not-ours"):
        call(lab, "set_notes", {"vm_id": vm_id, "marker": "other", "name": "x", "notes": ""})
    _attach(lab, vm_id, folder)
    vm = lab.practice.host.vm(vm_id)
    assert call(lab, "set_power", {"vm_id": vm_id, "power": "on"}).state == 2
    lab.wait_ready(vm)
    lab.say(vm, "journal start", "ACK 3$")
    taken = lab.take(vm, Level.APPLICATION)

    moved = call(lab, "move_storage", {"vm_id": vm_id, "folder": "E:\\moved"})
    disks = read_disks(lab.session, taken.id, PATIENCE)
    assert disks.configuration[0].startswith("E:\\moved\\Snapshots\\")
    with lab.reader(disks.disks[0]) as reader:
        assert reader.size_bytes == 256 << 20
    remove_checkpoint(lab.session, vm_id, taken.id, PATIENCE)
    moved = call(lab, "move_storage", {"vm_id": vm_id, "folder": "E:\\moved"})  # repeatable
    assert moved.disk_paths == ["E:\\moved\\Virtual Hard Disks\\disk-1.vhdx"]
    acknowledged = int(lab.say(vm, "journal stop", r"ACK \d+$").split()[1])
    vm.turn_off()
    with vm.opened_disks() as disks:
        assert len(read_journal(disks["ide0-0"])) >= acknowledged > 3

    parameters = {"serial": SERIAL, "marker": MARKER}
    assert call(lab, "offline_disk", parameters).found
    assert call(lab, "disconnect_iscsi", lun.portal()).found
    assert not place.joinpath(MARKER).exists()
    assert call(lab, "remove_vm", {"vm_id": vm_id, "marker": MARKER}).disk_paths == moved.disk_paths
    assert not call(lab, "remove_vm", {"vm_id": vm_id, "marker": MARKER}).found
    assert not call(lab, "offline_disk", parameters).found
    assert not call(lab, "disconnect_iscsi", lun.portal()).found


def test_a_host_whose_lun_died_ends_all_the_same(lab: HypervLab, tmp_path: Path) -> None:
    """A guest boots from it when the appliance goes away; the host leaves no mount behind."""
    with served_lun(build(GuestKind.TINY), tmp_path) as lun:
        call(lab, "connect_iscsi", lun.connection())
        online = {"serial": SERIAL, "marker": MARKER, "mount": True}
        folder = call(lab, "online_disk", online).folder
        vm_id = _new_vm(lab)
        _attach(lab, vm_id, folder)
        call(lab, "set_power", {"vm_id": vm_id, "power": "on"})
    lab.practice.__exit__(None, None, None)
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()
