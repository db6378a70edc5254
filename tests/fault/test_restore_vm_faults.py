"""Faults of the practice vCenter, met by a restore to a new VM.

Each ends in a VM that is the point's, or in a clear error; either way nothing else is left once the
next clean-up has been: no VM, no folder, no lease, no disk on the appliance, no open intent.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.sources.vsphere_transports import SourceTools
from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from tests.support.killed_restore import kill_restore
from tests.support.lab_machines import done
from tests.support.needs import needs
from tests.support.restoring import (
    Restoring,
    appliance_tools,
    disk_content,
    left_overs,
    machine_named,
    restoring,
)
from tests.support.vm_lab import VmLab, backing_up, vm_lab

pytestmark = pytest.mark.integration

MIB = 1 << 20
HOT_ADD, NFC = ("hot-add",), ("nfc-lease",)
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Met:
    """How a restore meets a fault."""

    name: FaultName
    transports: tuple[str, ...] = ()
    times: int | None = 1
    amount: float = 0.0
    match: dict[str, str] = field(default_factory=dict)
    fails: bool | None = False  # None: either is right
    by: str = ""  # the transport that must have been used
    code: str = ""  # a reason that must be given
    power_on: bool = False

    def __str__(self) -> str:
        words = [self.name.value, *self.transports, *self.match.values()]
        return "-".join(words) + ("" if self.times else "-for-ever")


CREATE, RECONFIGURE = {"method": "CreateVM_Task"}, {"method": "ReconfigVM_Task"}
IMPORT, STREAM = {"method": "ImportVApp"}, {"path": "/nfc/*"}

MET = [
    Met(name=FaultName.TASK_FAILURE, match=CREATE, fails=True),
    Met(name=FaultName.LOST_TASK_REPLY, match=CREATE),
    Met(name=FaultName.SESSION_DROP, match=CREATE),
    Met(name=FaultName.SESSION_DROP, match=RECONFIGURE),
    Met(name=FaultName.SOAP_500, match=CREATE, fails=True),
    Met(name=FaultName.PRIVILEGE_LOST, match=CREATE, fails=True),
    Met(name=FaultName.TASK_FAILURE, match=RECONFIGURE, by="nfc-lease"),
    Met(name=FaultName.TASK_FAILURE, match=RECONFIGURE, transports=HOT_ADD, fails=True),
    Met(name=FaultName.TASK_IN_PROGRESS, match=RECONFIGURE, by="hot-add"),
    Met(name=FaultName.LOST_TASK_REPLY, match=RECONFIGURE, fails=None),
    Met(name=FaultName.HOT_ADD_NEVER_APPEARS, by="nfc-lease"),
    Met(name=FaultName.HOT_ADD_WRONG_DISK, by="nfc-lease"),
    Met(name=FaultName.HOT_REMOVE_FAILURE, fails=None),
    Met(name=FaultName.HOT_REMOVE_FAILURE, times=3, fails=True),
    Met(name=FaultName.HTTP_500, match={"path": "*.nvram"}, fails=True),
    Met(name=FaultName.LEASE_ERROR, transports=NFC, fails=True),
    Met(name=FaultName.LEASE_EXPIRY, transports=NFC, fails=True),
    Met(name=FaultName.SESSION_DROP, transports=NFC, match=IMPORT),
    Met(name=FaultName.PRIVILEGE_LOST, transports=NFC, match=IMPORT, fails=True),
    Met(name=FaultName.DYING_HOST, transports=NFC, match=STREAM, fails=True),
    Met(name=FaultName.HTTP_500, transports=NFC, match=STREAM, fails=True),
    Met(name=FaultName.HTTP_503, transports=NFC, match=STREAM, fails=True),
    Met(name=FaultName.POWER_ON_FAILURE, power_on=True, code="restore.not-started"),
    Met(name=FaultName.QUESTION, power_on=True),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "losetup")
    with vm_lab() as running:
        yield running


@pytest.fixture(scope="module")
def tools(lab: VmLab, tmp_path_factory: pytest.TempPathFactory) -> SourceTools:
    return appliance_tools(lab, tmp_path_factory.mktemp("appliance") / "root")


@pytest.fixture(scope="module")
def here(
    lab: VmLab, tools: SourceTools, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Restoring]:
    image = tmp_path_factory.mktemp("images") / "disk.raw"
    image.write_bytes(random.Random(6).randbytes(2 * MIB) + bytes(2 * MIB))
    lab.add_machine("cold", image, extra_disks_bytes=(MIB,))
    with backing_up(lab, tools) as backup:
        (result,) = backup.back_up("cold")
        assert result.backup is not None, result.error
    with restoring(lab, tools) as opened:
        yield opened


@pytest.mark.parametrize("met", MET, ids=str)
def test_a_fault_ends_in_the_points_vm_or_in_an_error_and_no_debris(
    here: Restoring, lab: VmLab, met: Met
) -> None:
    """Whatever it was, the next restore works."""
    before = left_overs(lab, here.catalog)
    original = [disk_content(lab, "cold", number) for number in (0, 1)]
    point = here.point("cold")
    name = f"new-{next(_numbers)}"
    lab.faults.arm(met.name, met.times, amount=met.amount, **met.match)
    error: ApplianceError | None = None
    try:
        result = here.restore(point, name=name, transports=met.transports, power_on=met.power_on)
    except ApplianceError as caught:
        error = caught
    finally:
        fired = lab.faults.fired(met.name)
        lab.faults.disarm()
    assert fired, "the fault was not met"
    if met.fails is not None:
        assert (error is not None) == met.fails, error
    if error is None:
        assert met.by in ("", result.transport)
        assert met.code in ("", *(reason.code for reason in result.reasons))
        remove(here, lab, name, point)
    here.clean_up()
    assert left_overs(lab, here.catalog) == before, error
    assert [disk_content(lab, "cold", number) for number in (0, 1)] == original


def test_a_cancelled_restore_leaves_nothing(here: Restoring, lab: VmLab) -> None:
    """However it writes, and without any clean-up."""
    for transport in ("hot-add", "nfc-lease"):
        before = left_overs(lab, here.catalog)
        cancel = CancelToken()
        with pytest.raises(CancelledError):
            here.restore(
                here.point("cold"),
                RunContext(cancel, CancellingProgress(cancel)),
                name="never",
                transports=(transport,),
            )
        assert left_overs(lab, here.catalog) == before


class CancellingProgress(Progress):
    """Cancels as soon as something was written."""

    def __init__(self, cancel: CancelToken) -> None:
        super().__init__()
        self._cancel = cancel

    def advance(self, done_bytes: int) -> None:
        super().advance(done_bytes)
        self._cancel.cancel()


def remove(here: Restoring, lab: VmLab, name: str, point: object) -> None:
    machine = machine_named(lab, name)
    vm = lab.client_of(machine)
    if machine.engine.power is PowerState.ON:
        done(vm.PowerOffVM_Task())
    assert disk_content(lab, name, 0) == here.content(here.point("cold"), 0)
    assert disk_content(lab, name, 1) == here.content(here.point("cold"), 1)
    done(vm.Destroy_Task())


@pytest.mark.parametrize("where", ["begun", "written"])
@pytest.mark.parametrize("transport", ["hot-add", "nfc-lease"])
def test_a_killed_restore_is_cleared_away_by_the_next_run(
    here: Restoring, lab: VmLab, tools: SourceTools, transport: str, where: str
) -> None:
    """Its VM, its disks on the appliance, its lease: a lease ends by itself, as the host says."""
    before = left_overs(lab, here.catalog)
    root = str(tools.appliance_disks.devices.root)
    kill_restore(lab.home, root, here.point("cold").point_id, "new", transport, where)
    assert left_overs(lab, here.catalog) != before
    for lease in lab.plane.lease_table.open_leases():
        lease.expire()
    here.clean_up()
    assert left_overs(lab, here.catalog) == before


def test_a_killed_roll_back_is_ended_by_the_same_command(
    here: Restoring, lab: VmLab, tools: SourceTools
) -> None:
    """The disk is taken off the appliance first; the areas are known and written again."""
    point = here.point("cold")
    flat = lab.folder / "ds1" / "cold" / "cold-flat.vmdk"
    lab.faults.arm(FaultName.CBT_MISSING_LIST, None)
    try:
        before = left_overs(lab, here.catalog)
        with flat.open("r+b") as file:
            file.write(b"broken by an update")
        root = str(tools.appliance_disks.devices.root)
        kill_restore(lab.home, root, point.point_id, "in-place", "hot-add", "written")
        assert left_overs(lab, here.catalog) != before
        here.clean_up()
        assert left_overs(lab, here.catalog) == before
    finally:
        lab.faults.disarm()
    assert list((lab.home / "rollbacks").iterdir()) != []
    here.roll_back(point)
    assert disk_content(lab, "cold") == here.content(point)
    assert list((lab.home / "rollbacks").iterdir()) == []
