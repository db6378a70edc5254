"""Snapshots, hot-add and clean-up against vcsim, which nobody here wrote."""

from __future__ import annotations

import hashlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.guest_scsi import GuestScsi
from tests.support.vcsim import Vcsim, vcsim
from vmware.change_tracking import Tracking, enable_tracking
from vmware.changed_blocks import FullRead, baseline_of, changed_areas
from vmware.errors import CertificateError
from vmware.inventory import VmInfo, find_vms, read_vm
from vmware.marker import Marker
from vmware.orphans import look, plan_orphans, remove_orphans
from vmware.patience import Patience
from vmware.prechecks import check_vm
from vmware.quiesce import Consistency, Ladder, Rung
from vmware.session import Session
from vmware.snapshot_tree import list_snapshots
from vmware.snapshots import Removal, create_snapshot, remove_snapshot
from vmware.transports.appliance_disks import ApplianceDisks
from vmware.transports.attach_intent import AttachIntent
from vmware.transports.contract import DiskRequest
from vmware.transports.hot_add import HotAdd
from vmware.transports.vddk import sha1_thumbprint

pytestmark = pytest.mark.integration

MARKER = Marker(appliance_id="ours", run_id="run-1")


@pytest.fixture(scope="module")
def server() -> Iterator[Vcsim]:
    with vcsim() as running:
        yield running


@pytest.fixture
def session(server: Vcsim) -> Iterator[Session]:
    with server.connect() as session:
        yield session


@pytest.fixture
def vm(session: Session) -> VmInfo:
    (found,) = find_vms(session, ["DC0_H0_VM1"])
    return found


@pytest.fixture
def appliance(session: Session) -> VmInfo:
    (found,) = find_vms(session, ["DC0_H0_VM0"])
    return found


def tree(server: Vcsim) -> str:
    return server.govc("snapshot.tree", "-vm", "DC0_H0_VM1", "-D", "-i")


def test_a_snapshot_is_made_seen_by_govc_and_removed(
    server: Vcsim, session: Session, vm: VmInfo
) -> None:
    """Its name and marker are there for everybody; a foreign one survives the removal."""
    server.govc("snapshot.create", "-vm", "DC0_H0_VM1", "theirs")
    taken = create_snapshot(session, vm.moref, MARKER)
    assert taken.consistency is Consistency.CRASH  # vcsim runs no tools
    seen = tree(server)
    assert "holdfast-run-1-backup" in seen
    assert taken.moref in seen
    ours = {entry.moref: entry.marker for entry in list_snapshots(session, vm.moref)}
    assert ours[taken.moref] == MARKER
    outcome = remove_snapshot(session, vm.moref, taken.moref, appliance_id="ours")
    assert outcome.removal is Removal.REMOVED
    assert "theirs" in tree(server)
    assert "holdfast" not in tree(server)
    again = remove_snapshot(session, vm.moref, taken.moref, appliance_id="ours")
    assert again.removal is Removal.ALREADY_GONE
    server.govc("snapshot.remove", "-vm", "DC0_H0_VM1", "theirs")


def test_a_quiesced_snapshot_is_asked_for_when_tools_run(
    server: Vcsim, session: Session, vm: VmInfo
) -> None:
    """CreateSnapshotEx_Task with a spec, as the server's flag shows."""
    state = "SET.guest.toolsRunningStatus"
    server.govc("vm.change", "-vm", vm.name, "-e", f"{state}=guestToolsRunning")
    try:
        taken = create_snapshot(session, vm.moref, MARKER, ladder=Ladder(bottom=Rung.FILE_SYSTEM))
        assert taken.consistency is Consistency.FILE_SYSTEM
        remove_snapshot(session, vm.moref, taken.moref, appliance_id="ours")
    finally:
        server.govc("vm.change", "-vm", vm.name, "-e", f"{state}=guestToolsNotRunning")


def test_a_server_without_change_lists_gives_a_full_read(session: Session, vm: VmInfo) -> None:
    """QueryChangedDiskAreas is not there; the reason has a code."""
    disk = replace(vm.disks[0], change_id="52 aa/1")
    base = replace(baseline_of(disk), change_id="52 aa/0")
    found = changed_areas(session, vm.moref, "snapshot-0", disk, base)
    assert isinstance(found, FullRead)
    assert found.finding.code == "cbt.unsupported"


def test_tracking_is_enabled_where_the_vm_can(session: Session, vm: VmInfo) -> None:
    """The flag is set, the stun cycle leaves no snapshot; or it says why not."""
    outcome = enable_tracking(session, vm.moref, MARKER)
    if outcome.tracking is Tracking.OFF:
        assert [f.code for f in outcome.findings] == ["cbt.not-supported"]
    else:
        assert read_vm(session, vm.moref).cbt_enabled
    assert list_snapshots(session, vm.moref) == ()


def test_a_healthy_vm_has_nothing_that_blocks(session: Session, vm: VmInfo) -> None:
    """The checks work with what a foreign server answers."""
    assert [f for f in check_vm(session, vm) if f.weight == "blocking"] == []


class HotAdded:
    """A disk of one VM, attached to another; the device appears in a guest in a folder."""

    def __init__(self, root: Path, session: Session, appliance: VmInfo, vm: VmInfo) -> None:
        self.guest = GuestScsi(root, product_uuid=appliance.bios_uuid)
        self._session = session
        self._appliance = appliance
        self.disk = vm.disks[0]
        self.intents: list[AttachIntent] = []
        self.disks = ApplianceDisks(device_root=root, patience=Patience(wait=self._plug))
        self.transport = HotAdd(self.disks, run_id="run-1", record=self._record)
        self.request = DiskRequest(
            session=session, vm=vm, snapshot_moref="snapshot-0", disk=self.disk
        )

    def _record(self, intent: AttachIntent):  # type: ignore[no-untyped-def]
        self.intents.append(intent)
        return lambda: self.intents.remove(intent)

    def _plug(self, _: float) -> None:
        """The guest's kernel finds what vcsim attached."""
        if not self.disks.devices.addresses():
            self.guest.plug(
                b"\x55" * 4096,
                unit=self.intents[-1].slot.unit_number,
                uuid=self.disk.backing_uuid,
                size=self.disk.capacity_bytes,
            )

    def attached(self) -> list[str]:
        return [disk.file_name for disk in read_vm(self._session, self._appliance.moref).disks]


def test_a_disk_is_hot_added_and_detached_and_its_file_stays(
    server: Vcsim, session: Session, appliance: VmInfo, vm: VmInfo, tmp_path: Path
) -> None:
    """The spec is one that a foreign server takes, and removing it deletes nothing."""
    world = HotAdded(tmp_path, session, appliance, vm)
    before = world.attached()
    assert world.transport.refusal(world.request) is None
    reader = world.transport.open(world.request)
    assert reader.read_at(0, 4096) == b"\x55" * 4096
    assert world.attached() == [*before, world.disk.file_name]
    devices = json.loads(server.govc("device.info", "-json", "-vm", appliance.name))["devices"]
    added = next(d for d in devices if d.get("backing", {}).get("fileName") == world.disk.file_name)
    assert added["backing"]["diskMode"] == "independent_nonpersistent"
    assert added["unitNumber"] not in (0, 7)
    reader.close()
    assert world.attached() == before
    assert world.intents == []
    folder = world.disk.file_name.partition("] ")[2]
    assert "disk1.vmdk" in server.govc("datastore.ls", "-ds", "LocalDS_0", folder)


def test_what_a_killed_run_left_is_removed_and_nothing_else(
    server: Vcsim, session: Session, appliance: VmInfo, vm: VmInfo, tmp_path: Path
) -> None:
    """Its disk and its snapshot; not the snapshot of a person, nor of a live run."""
    server.govc("snapshot.create", "-vm", vm.name, "theirs")
    create_snapshot(session, vm.moref, MARKER)
    live = create_snapshot(session, vm.moref, Marker(appliance_id="ours", run_id="run-2"))
    world = HotAdded(tmp_path, session, appliance, vm)
    before = world.attached()
    world.transport.open(world.request)
    plan = plan_orphans(look(session, "ours", world.disks), world.intents, "run-2".__eq__)
    outcomes = remove_orphans(session, plan, "ours", world.disks)
    assert [outcome.failure for outcome in outcomes] == ["", ""]
    assert world.attached() == before
    left = list_snapshots(session, vm.moref)
    assert [entry.name for entry in left] == ["theirs", "holdfast-run-2-backup"]
    remove_snapshot(session, vm.moref, live.moref, appliance_id="ours")
    server.govc("snapshot.remove", "-vm", vm.name, "theirs")


def test_the_thumbprint_for_vddk_is_of_the_pinned_certificate(server: Vcsim) -> None:
    """SHA-1 of the very certificate whose SHA-256 is pinned; a wrong pin gives none."""
    pem = ssl.get_server_certificate((server.address, server.port))
    expected = hashlib.sha1(ssl.PEM_cert_to_DER_cert(pem)).digest().hex(":")
    assert sha1_thumbprint(server.endpoint) == expected
    with pytest.raises(CertificateError):
        sha1_thumbprint(replace(server.endpoint, fingerprint_sha256=":".join(["00"] * 32)))
