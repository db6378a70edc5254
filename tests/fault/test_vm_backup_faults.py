"""Every fault switch of the practice vCenter, met by a backup of a guest that runs.

Each ends in a point that holds exactly what its snapshot held, or in a clear failure. Either way no
snapshot of ours, no lease, no attached disk and no open intent is left once the next run has begun,
and the next run works.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.base.consistency import Consistency
from appliance.catalog.runs import RunOutcome
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.vm_backup import VmResult
from appliance.sources.contract import ConsistencyPolicy
from lab.faults import FaultName
from lab.vcenter.virtual_machine_setup import add_appliance
from tests.support.needs import needs
from tests.support.vm_lab import CRASH, Guest, InProcess, VmLab, backing_up, quick_tools, vm_lab
from vmware.patience import Patience
from vmware.transports.appliance_disks import ApplianceDisks

pytestmark = pytest.mark.integration

QUIESCED = ConsistencyPolicy(wanted=Consistency.APPLICATION)
EVERYTHING = AuditPolicy(percent=100)


@dataclass(frozen=True, kw_only=True)
class Met:
    """How a backup meets a fault."""

    name: FaultName
    transports: tuple[str, ...] = ("datastore-https",)
    times: int | None = 1
    amount: float = 0.0
    match: dict[str, str] = field(default_factory=dict)
    consistency: ConsistencyPolicy = CRASH
    audit: AuditPolicy = field(default_factory=lambda: AuditPolicy(percent=0))
    full: bool = False
    also: FaultName | None = None
    code: str = ""  # a reason or error that must be given
    fails: bool = False  # no point can be made while it lasts

    def __str__(self) -> str:
        words = [self.name.value, *self.match.values(), *self.transports]
        return "-".join(words) + ("" if self.times else "-for-ever")


HTTPS, NFC, HOT_ADD = ("datastore-https",), ("nfc-lease",), ("hot-add",)
FLAT = {"path": "*-flat.vmdk"}
STREAM = {"path": "*/nfc/*"}

MET = [
    Met(name=FaultName.CBT_RESET, code="cbt.file-fault"),
    Met(name=FaultName.CBT_MISSING_LIST),
    Met(name=FaultName.CBT_PARTIAL_LIST, audit=EVERYTHING, code="cbt.audit-mismatch"),
    Met(name=FaultName.CBT_EMPTY_LIST, audit=EVERYTHING, code="cbt.audit-mismatch"),
    Met(name=FaultName.CBT_UNSORTED_LIST),
    Met(name=FaultName.CBT_OVERLAPPING_LIST),
    Met(name=FaultName.CBT_OUTSIDE_LIST),
    Met(name=FaultName.CBT_STUCK_PAGE),
    Met(name=FaultName.CBT_FOREIGN_CHANGE_ID),
    Met(name=FaultName.CBT_NO_CHANGE_ID),
    Met(name=FaultName.QUIESCE_FAILURE, times=2, consistency=QUIESCED),
    Met(name=FaultName.QUIESCE_HALF_MADE, times=2, consistency=QUIESCED),
    Met(name=FaultName.SNAPSHOT_FAILURE, times=None, fails=True),
    Met(name=FaultName.SNAPSHOT_STUCK, amount=0.5),
    Met(name=FaultName.REMOVE_FAILURE),
    Met(name=FaultName.REMOVE_FAILURE, times=None, code="snapshot.not-removed"),
    Met(name=FaultName.REMOVE_STUCK, amount=0.5),
    Met(name=FaultName.CONSOLIDATION_NEEDED),
    Met(name=FaultName.CONSOLIDATION_NEEDED, times=None),
    Met(name=FaultName.CONSOLIDATION_LOCKED, also=FaultName.CONSOLIDATION_NEEDED),
    Met(name=FaultName.SESSION_DROP),
    Met(name=FaultName.SESSION_DROP, match={"method": "CreateSnapshot*"}),
    Met(name=FaultName.SESSION_DROP, match={"method": "RemoveSnapshot*"}),
    Met(name=FaultName.LOST_TASK_REPLY, match={"method": "CreateSnapshot*"}),
    Met(name=FaultName.LOST_TASK_REPLY, match={"method": "RemoveSnapshot*"}),
    Met(name=FaultName.TASK_FAILURE, match={"method": "CreateSnapshot*"}, fails=True),
    Met(name=FaultName.TASK_FAILURE, match={"method": "RemoveSnapshot*"}),
    Met(name=FaultName.TASK_IN_PROGRESS, match={"method": "CreateSnapshot*"}),
    Met(name=FaultName.TASK_IN_PROGRESS, match={"method": "RemoveSnapshot*"}),
    Met(name=FaultName.SOAP_500, match={"method": "CreateSnapshot*"}, fails=True),
    Met(name=FaultName.SOAP_500, match={"method": "RemoveSnapshot*"}),
    Met(name=FaultName.SOAP_500, match={"method": "QueryChangedDiskAreas"}),
    Met(name=FaultName.SOAP_DELAY, amount=0.5),
    Met(name=FaultName.PRIVILEGE_LOST, match={"method": "CreateSnapshot*"}, fails=True),
    Met(name=FaultName.PRIVILEGE_LOST, match={"method": "QueryChangedDiskAreas"}),
    Met(name=FaultName.MISSING_PROPERTY, times=None, fails=True, code="source.vm-not-protectable"),
    Met(name=FaultName.SLOW_HOST, transports=HTTPS, amount=0.5),
    Met(name=FaultName.SLOW_STREAM, transports=HTTPS, amount=4 << 20),
    Met(name=FaultName.DYING_HOST, transports=HTTPS, match=FLAT),
    Met(name=FaultName.DYING_HOST, transports=HTTPS, times=None, match=FLAT, fails=True),
    Met(name=FaultName.DYING_HOST, transports=HTTPS + NFC, times=None, match=FLAT),
    Met(name=FaultName.HTTP_500, transports=HTTPS, match=FLAT),
    Met(name=FaultName.HTTP_503, transports=HTTPS, match=FLAT),
    Met(name=FaultName.HTTP_500_MID_STREAM, transports=HTTPS, amount=4096, match=FLAT),
    Met(name=FaultName.TRUNCATED_BODY, transports=HTTPS, amount=4096, match=FLAT),
    Met(name=FaultName.RESET_MID_STREAM, transports=HTTPS, amount=4096, match=FLAT),
    Met(name=FaultName.RANGE_IGNORED, transports=HTTPS, match=FLAT),
    Met(name=FaultName.WRONG_RANGE, transports=HTTPS, match=FLAT),
    Met(name=FaultName.TICKET_REFUSED, transports=HTTPS),
    Met(name=FaultName.DESCRIPTOR_STREAMS_DISK, transports=HTTPS, fails=True),
    Met(name=FaultName.DESCRIPTOR_STREAMS_DISK, transports=HTTPS + NFC),
    Met(name=FaultName.FILE_LOCKED, transports=HTTPS, match=FLAT),
    Met(name=FaultName.LEASE_ERROR, transports=NFC, fails=True),
    Met(name=FaultName.LEASE_EXPIRY, transports=NFC),
    Met(name=FaultName.LEASE_BAD_GRAIN, transports=NFC, fails=True),
    Met(name=FaultName.LEASE_WRONG_LBA, transports=NFC, fails=True),
    Met(name=FaultName.LEASE_NO_FOOTER, transports=NFC),
    Met(name=FaultName.RESET_MID_STREAM, transports=NFC, amount=4096, match=STREAM),
    Met(name=FaultName.CORRUPT_BODY, transports=NFC, amount=1 << 20, match=STREAM, fails=True),
    Met(name=FaultName.HOT_ADD_NEVER_APPEARS, transports=HOT_ADD, fails=True),
    Met(name=FaultName.HOT_ADD_NEVER_APPEARS, transports=HOT_ADD + HTTPS, times=None),
    Met(name=FaultName.HOT_ADD_WRONG_DISK, transports=HOT_ADD + HTTPS, times=None),
    Met(name=FaultName.HOT_REMOVE_FAILURE, transports=HOT_ADD),
]
ELSEWHERE = {
    FaultName.CBT_ENABLE_IGNORED: "tests/integration/test_vm_backup_lab.py has it",
    FaultName.CORRUPT_BODY: "over /folder nothing but TLS protects the bytes of a disk",
    FaultName.LEASE_STUCK: "ends by the deadline of minutes; vmware's own tests shorten it",
    FaultName.NO_SPACE: "of uploads",
    FaultName.QUESTION: "of powering on",
    FaultName.POWER_ON_FAILURE: "of powering on",
    FaultName.TOOLS_SILENT: "of a guest's start; the ladder's unit tests have it",
    FaultName.RELOCATE_FAILURE: "of relocation",
    FaultName.NO_LIVE_MOVE: "of relocation",
    FaultName.SCREEN_UNAVAILABLE: "of screenshots",
    **dict.fromkeys(
        (
            FaultName.RCT_RESET,
            FaultName.RCT_EMPTY_ID,
            FaultName.RCT_QUERY_FAILURE,
            FaultName.RCT_STUCK_REGION,
            FaultName.MERGE_FAILURE,
            FaultName.SMB_FILE_BUSY,
            FaultName.SCRIPT_FAILURE,
        ),
        "of Hyper-V: tests/integration/test_hyperv_backup_lab.py and test_lab_hyperv_host.py",
    ),
}


def test_no_fault_switch_is_forgotten() -> None:
    """Whoever adds one says where a backup meets it, or why it does not."""
    assert {met.name for met in MET} | set(ELSEWHERE) == set(FaultName)


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("qemu-system-x86_64", "qemu-img", "losetup", "qemu-storage-daemon")
    with vm_lab() as running:
        yield running


@pytest.fixture(scope="module")
def guest(lab: VmLab) -> Guest:
    return lab.add_guest("web")


@pytest.fixture(scope="module")
def here(lab: VmLab, guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    root = Path(tmp_path_factory.mktemp("appliance"), "root")
    add_appliance(lab.inventory, "appliance", root)
    disks = ApplianceDisks(device_root=root, patience=Patience(wait=lambda seconds: None))
    with backing_up(lab, quick_tools(appliance_disks=disks)) as opened:
        opened.back_up("web", transports=HTTPS)
        yield opened
    lab.faults.disarm()


def codes(result: VmResult) -> str:
    found = [reason.code for reason in result.reasons]
    if result.backup is not None:
        found += [r.code for disk in result.backup.disks for r in disk.transfer.refusals]
    return " ".join([*found, result.error.code if result.error else ""])


@pytest.mark.parametrize("met", MET, ids=str)
def test_a_backup_that_meets_a_fault_is_right_or_fails_clearly(
    here: InProcess, guest: Guest, met: Met
) -> None:
    """See the module."""
    lab = here.lab
    points = len(here.repository.points.list("web"))
    guest.write(1)
    before = lab.faults.fired(met.name)
    lab.faults.arm(met.name, met.times, amount=met.amount, **met.match)
    if met.also is not None:
        lab.faults.arm(met.also)
    (result,) = here.back_up(
        "web",
        transports=met.transports,
        consistency=met.consistency,
        audit=met.audit,
        full=met.full,
    )
    lab.faults.disarm()
    assert lab.faults.fired(met.name) > before, "the fault was not met"
    assert met.code in codes(result)
    made = len(here.repository.points.list("web")) - points
    if result.backup is not None:
        assert made == 1
        assert not met.fails, f"{result.status} {codes(result)}"
        assert here.stored("web") == here.frozen["web", 0]
    else:
        assert made == 0
        assert result.status is RunOutcome.FAILED
        assert result.error is not None
        assert result.error.code != "run.unexpected", result.error
        assert met.fails, result.error
    here.clean_up()  # as the next run begins
    assert lab.snapshots_of(guest.machine) == []
    assert here.catalog.intents.open_intents() == []
    assert lab.plane.lease_table.open_leases() == []
    assert not guest.vm.runtime.consolidationNeeded or result.status is not RunOutcome.SUCCESS
    if result.status is RunOutcome.SUCCESS:
        return  # as if nothing had happened
    (after,) = here.back_up("web", transports=HTTPS)
    assert after.backup is not None, after.error
    assert here.stored("web") == here.frozen["web", 0]
    assert lab.snapshots_of(guest.machine) == []
    assert not guest.vm.runtime.consolidationNeeded
