"""Instant recovery that is killed, refused, cancelled and lied to, in the practice vCenter."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from pyVmomi import vim

from appliance.base.errors import ApplianceError, CancelledError, UsageError
from appliance.base.run_context import CancelToken
from appliance.base.secret import Secret
from appliance.exports.datastore.session import Phase, SessionNotFoundError
from appliance.jobs.instant_recovery import CannotResumeError
from appliance.jobs.recovery_end import NothingToFinaliseError
from appliance.service.recoveries import clear_lost, lost_sessions
from appliance.sources.vsphere_errors import VsphereMountError, VspherePrivilegeError
from appliance.sources.vsphere_host import HostLogin, VsphereHost
from appliance.targets import vsphere_recovery
from appliance.targets.contract import NoSuchPlaceError
from appliance.targets.recovery import Breadth, RecoveryTarget, StillThereError, TargetState
from appliance.targets.vsphere_recovery import VsphereRecovery
from lab.faults import FaultName
from tests.support.instant_lab import InProcess, InstantLab, in_process, instant_lab
from tests.support.lab_machines import done
from tests.support.lab_nfs import needs_nfs_datastores
from vmware.errors import BusyError
from vmware.privileges import PRIVILEGES, Purpose
from vmware.relocate import relocate_vm

pytestmark = pytest.mark.integration

STEPS_OF_A_START = ["mount", "register"]
STEPS_OF_A_DISCARD = ["take_away", "unmount"]
STEPS_OF_A_FINALISE = ["move", "left_behind", "settle", "unmount"]


class Killed(BaseException):
    """In place of SIGKILL: nothing that handles errors sees it."""


class KilledTarget:
    """A target whose process dies at one step: before it, or after it was done."""

    def __init__(self, target: RecoveryTarget, step: str, *, after: bool) -> None:
        self._target = target
        self._step = step
        self._after = after

    @property
    def name(self) -> str:
        return self._target.name

    def __getattr__(self, step: str) -> Any:
        real: Callable[..., Any] = getattr(self._target, step)
        if step != self._step:
            return real

        def call(*words: Any, **options: Any) -> Any:
            if self._after:
                real(*words, **options)
            raise Killed

        return call


@pytest.fixture(scope="module")
def lab() -> Iterator[InstantLab]:
    needs_nfs_datastores()
    with instant_lab() as opened:
        yield opened


@pytest.fixture
def here(lab: InstantLab) -> Iterator[InProcess]:
    with in_process(lab) as opened:
        before = lab.traces()
        yield opened
        assert lab.traces() == before, "every test ends without a trace"


def only_session(here: InProcess) -> str:
    (record,) = here.room.store.list()
    return record.session_id


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS_OF_A_START)
def test_a_start_that_was_killed_is_resumed(here: InProcess, step: str, after: bool) -> None:
    """Whether the step was done or not; nothing is made twice."""
    with pytest.raises(Killed):
        here.start(target=KilledTarget(here.target, step, after=after), name="web-2")
    session = only_session(here)
    result = here.resume(session)
    assert result.record.phase is Phase.REGISTERED
    machines = [name for name in here.here.traces()["vms"] if name.startswith("web-2")]
    assert machines == ["web-2"]
    assert here.resume(session).record.vm_key == result.record.vm_key
    here.discard(session)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS_OF_A_START)
def test_a_start_that_was_killed_is_discarded(here: InProcess, step: str, after: bool) -> None:
    """From any half-way state, without a trace."""
    with pytest.raises(Killed):
        here.start(target=KilledTarget(here.target, step, after=after))
    here.discard(only_session(here))


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS_OF_A_DISCARD)
def test_a_discard_that_was_killed_is_done_again(here: InProcess, step: str, after: bool) -> None:
    """And a session that is being discarded is not resumed."""
    session = here.start().record.session_id
    with pytest.raises(Killed):
        here.discard(session, target=KilledTarget(here.target, step, after=after))
    with pytest.raises(CannotResumeError):
        here.resume(session)
    with pytest.raises(NothingToFinaliseError):
        here.finalise(session)
    here.discard(session)
    with pytest.raises(SessionNotFoundError):
        here.discard(session)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS_OF_A_FINALISE)
def test_a_finalise_that_was_killed_is_done_again(here: InProcess, step: str, after: bool) -> None:
    """The overlay stays until the VM provably left; then the VM is an ordinary one."""
    record = here.start(isolate_all=False, name="web-3").record
    with pytest.raises(Killed):
        here.finalise(record.session_id, target=KilledTarget(here.target, step, after=after))
    assert only_session(here) == record.session_id
    here.finalise(record.session_id)
    machine = here.here.machine("web-3")
    assert machine.engine.config.vmx_path.datastore == "ds2"
    assert "holdfast.session" not in machine.engine.config.extra
    done(here.here.lab.client_of(machine).Destroy_Task())


@pytest.mark.parametrize("moved", [False, True])
def test_a_vm_that_a_killed_finalise_had_shut_down_is_on_after_the_next(
    here: InProcess, monkeypatch: pytest.MonkeyPatch, moved: bool
) -> None:
    """Whether it had moved by then or not, and although the next one finds it off."""
    record = here.start(isolate_all=False, name="web-8", power_on=True).record
    machine = here.here.machine("web-8")
    here.here.lab.faults.arm(FaultName.NO_LIVE_MOVE)

    def relocate(*words: Any, **options: Any) -> None:
        if moved or machine.engine.on:
            relocate_vm(*words, **options)
        else:
            raise Killed

    def die(*words: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(vsphere_recovery, "relocate_vm", relocate)
        patch.setattr(vsphere_recovery, "power_on", die)
        here.finalise(record.session_id, allow_downtime=True)
    assert not machine.engine.on
    here.finalise(record.session_id)
    assert machine.engine.on
    assert machine.engine.config.vmx_path.datastore == "ds2"
    client = here.here.lab.client_of(machine)
    done(client.PowerOffVM_Task())
    done(client.Destroy_Task())


def test_a_vm_that_was_started_again_and_then_shut_down_by_somebody_stays_off(
    here: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move that failed has started it again; what happens to it later is not our doing."""
    record = here.start(isolate_all=False, name="web-9", power_on=True).record
    machine = here.here.machine("web-9")
    here.here.lab.faults.arm(FaultName.NO_LIVE_MOVE)

    def relocate(*words: Any, **options: Any) -> None:
        if not machine.engine.on:
            raise BusyError("refused")
        relocate_vm(*words, **options)

    with monkeypatch.context() as patch, pytest.raises(ApplianceError, match="refused"):
        patch.setattr(vsphere_recovery, "relocate_vm", relocate)
        here.finalise(record.session_id, allow_downtime=True)
    assert machine.engine.on
    client = here.here.lab.client_of(machine)
    done(client.PowerOffVM_Task())
    here.finalise(record.session_id)
    assert not machine.engine.on
    done(client.Destroy_Task())


@pytest.mark.parametrize(
    "method", ["CreateNasDatastore", "RegisterVM_Task", "ReconfigVM_Task", "AddPortGroup"]
)
def test_a_reply_that_is_lost_makes_nothing_twice(here: InProcess, method: str) -> None:
    """The server did it, and the connection broke before it said so."""
    here.here.lab.faults.arm(FaultName.LOST_TASK_REPLY, method=method)
    try:
        session = here.start(name="web-4").record.session_id
    except ApplianceError as error:
        assert error.retryable
        session = only_session(here)
        assert here.room.store.get(session).stuck
        here.resume(session)
    assert here.here.machine("web-4").engine.config.nics[0].network == f"holdfast-{session}"
    here.discard(session)


@pytest.mark.parametrize("method", ["RemoveDatastore", "UnregisterVM", "RemovePortGroup"])
def test_a_lost_reply_at_the_end_leaves_nothing(here: InProcess, method: str) -> None:
    """If the discard fails of it, the next one ends it."""
    session = here.start().record.session_id
    here.here.lab.faults.arm(FaultName.LOST_TASK_REPLY, method=method)
    try:
        here.discard(session)
    except ApplianceError as error:
        assert error.retryable
        here.discard(session)


def test_what_is_refused_is_told_and_kept_for_a_second_try(here: InProcess) -> None:
    """A missing privilege: the session says where it is stuck, and goes on when it is granted."""
    here.here.lab.faults.arm(FaultName.PRIVILEGE_LOST, method="CreateNasDatastore")
    with pytest.raises(VspherePrivilegeError):
        here.start()
    session = only_session(here)
    stuck = here.room.store.get(session).stuck
    assert stuck is not None and stuck.startswith("mount: [vsphere.privilege]")
    result = here.resume(session)
    assert result.record.stuck is None
    here.discard(session)


def test_a_server_that_hosts_do_not_reach_is_a_typed_error(here: InProcess) -> None:
    """The message names the host and what to look at."""
    with pytest.raises(VsphereMountError, match="111"):
        here.start(address="127.0.0.2")
    here.discard(only_session(here))


def test_a_host_without_room_for_another_mount_says_so(here: InProcess) -> None:
    """ESXi takes 32 mounts unless it is told otherwise."""
    system = here.here.lab.inventory.hosts[0].datastore_system
    real = system._refuse_mounted

    def full(remote: Any, name: str) -> None:
        raise vim.fault.NasConnectionLimitReached(
            msg="full", name=name, remoteHost="", remotePath=""
        )

    system._refuse_mounted = full  # type: ignore[method-assign]
    try:
        with pytest.raises(VsphereMountError, match=r"NFS\.MaxVolumes"):
            here.start(place=replace(here.request().place, machine="127.0.1.1"))
    finally:
        system._refuse_mounted = real  # type: ignore[method-assign]
    here.discard(only_session(here))


@pytest.mark.parametrize("step", STEPS_OF_A_START)
def test_a_start_that_is_cancelled_takes_everything_away(here: InProcess, step: str) -> None:
    """Ctrl-C during a step: nothing is left, not even a session."""
    cancel = CancelToken()

    class Cancelling:
        name = here.target.name

        def __getattr__(self, name: str) -> Any:
            real = getattr(here.target, name)

            def call(*words: Any, **options: Any) -> Any:
                if name == step:
                    cancel.cancel()
                return real(*words, **options)

            return call

    with pytest.raises(CancelledError) as caught:
        here.start(target=Cancelling(), cancel=cancel)
    assert not getattr(caught.value, "__notes__", [])
    assert here.room.store.list() == []


def test_a_cancel_after_power_on_leaves_the_vm_running(here: InProcess) -> None:
    """Only the wait for the heartbeat ends, and that is said."""
    cancel = CancelToken()

    class Cancelling:
        name = here.target.name

        def __getattr__(self, name: str) -> Any:
            if name == "wait_alive":
                cancel.cancel()
            return getattr(here.target, name)

    result = here.start(target=Cancelling(), cancel=cancel, power_on=True, name="web-7")
    assert "instant.not-awaited" in [reason.code for reason in result.reasons]
    assert (result.life, result.record.phase) == (None, Phase.RUNNING)
    assert here.here.machine("web-7").engine.on
    here.discard(result.record.session_id)


def test_every_host_of_a_cluster_mounts_one_datastore_and_unmounts_it(here: InProcess) -> None:
    """Byte-identical, so vCenter sees one; and it is gone from all of them."""
    record = here.start(breadth=Breadth.CLUSTER).record
    hosts = here.here.lab.inventory.hosts
    assert all(record.datastore in [one.name for one in host.datastores] for host in hosts)
    here.discard(record.session_id)


def test_a_session_whose_folder_is_lost_is_found_by_the_journal_and_cleared(
    here: InProcess,
) -> None:
    """What it had made on the host is removed; there is nothing else left of it."""
    record = here.start().record
    here.room.server.withdraw(record.session_id)
    shutil.rmtree(here.room.folder / record.session_id)
    (lost,) = lost_sessions(here.catalog)
    assert (lost.session_id, lost.vm_key) == (record.session_id, record.vm_key)
    clear_lost(here.catalog, here.target, lost)
    assert lost_sessions(here.catalog) == []


def test_a_vm_that_left_is_not_taken_away_and_one_that_left_in_part_stops_a_discard(
    here: InProcess,
) -> None:
    """Whoever moved it by hand has a VM that is his own."""
    record = here.start(name="web-5").record
    machine = here.here.machine("web-5")
    client = here.here.lab.client_of(machine)
    stores = {one.name: one for one in client.runtime.host.datastore}
    only_home = vim.vm.RelocateSpec(
        datastore=stores["ds2"],
        disk=[vim.vm.RelocateSpec.DiskLocator(diskId=2000, datastore=stores[record.datastore])],
    )
    done(client.RelocateVM_Task(only_home))
    with pytest.raises(StillThereError, match="in part"):
        here.discard(record.session_id)
    done(client.RelocateVM_Task(vim.vm.RelocateSpec(datastore=stores["ds2"])))
    told = here.discard(record.session_id).reasons
    assert [reason.code for reason in told] == ["instant.vm-stays", "instant.network-stays"]
    done(client.Destroy_Task())
    host = next(
        one
        for one in here.here.lab.inventory.hosts
        if record.datastore in one.network_system.switches
    )
    client_host = vim.HostSystem(host.moid, here.here.lab.instance._stub)
    client_host.configManager.networkSystem.RemoveVirtualSwitch(record.datastore)


def test_wishes_that_cannot_be_make_nothing(here: InProcess) -> None:
    """A host, a network or a datastore that is not there is said before anything is made."""
    with pytest.raises(NoSuchPlaceError):
        here.start(isolate_all=False, networks=(("VM Network", "nowhere"),))
    with pytest.raises(NoSuchPlaceError):
        here.start(place=replace(here.request().place, machine="nobody"))
    with pytest.raises(UsageError):
        here.start(name="x" * 81)
    session = here.start().record.session_id
    with pytest.raises(NoSuchPlaceError, match="there are: ds1, ds2"):
        here.finalise(session, datastore="ds9")
    assert here.room.store.get(session).phase is Phase.REGISTERED
    here.discard(session)


def test_a_point_that_a_session_runs_from_is_not_forgotten(here: InProcess) -> None:
    """Everything that the guest has not written is read from it."""
    lab = here.here.lab
    session = here.start().record.session_id
    refused = lab.holdfast("point", "forget", here.here.point, expect=2)
    assert refused["error"]["code"] == "point.in-use"
    assert session in refused["error"]["message"]
    lab.holdfast("backup", "vm", "web", "--quiesce", "crash", "--quiet")
    pruned = lab.holdfast("prune", "--vm", "web", "--keep-last", "1", "--dry-run")
    assert [each["action"] for each in pruned["points"]] == ["keep", "keep"]
    here.discard(session)
    pruned = lab.holdfast("prune", "--vm", "web", "--keep-last", "1", "--dry-run")
    assert sorted(each["action"] for each in pruned["points"]) == ["keep", "remove"]


@contextmanager
def with_nothing_but(here: InProcess, *purposes: Purpose) -> Iterator[VsphereRecovery]:
    """The vCenter, logged in to with an account that has the privileges of these purposes."""
    accounts = here.here.lab.vcenter.accounts
    user = f"{'-'.join(purposes)}@lab"
    accounts.add_user(user, "x")
    role = accounts.add_role(user, sorted({n for each in purposes for n in PRIVILEGES[each]}))
    accounts.permit(user, role, here.here.lab.vcenter.root_folder)
    login = HostLogin(
        name="lab",
        address=here.here.lab.vcenter.address,
        port=here.here.lab.vcenter.port,
        user=user,
        fingerprint=here.here.lab.vcenter.fingerprint,
    )
    with VsphereHost.connect(login, lambda: Secret.of_text("x")) as host:
        yield VsphereRecovery(host, here.catalog.appliance_id)


_RECOVERY = (Purpose.INVENTORY, Purpose.RESTORE, Purpose.INSTANT_RECOVERY, Purpose.CONTROL)


def test_the_privileges_that_the_manual_lists_suffice(here: InProcess) -> None:
    """From start to finalise and discard, with an account that has nothing else."""
    with with_nothing_but(here, *_RECOVERY) as target:
        here.discard(here.start(target=target).record.session_id, target)
        record = here.start(target=target, name="web-6", isolate_all=False).record
        here.finalise(record.session_id, target=target)
    done(here.here.lab.client_of(here.here.machine("web-6")).Destroy_Task())


def test_a_verification_needs_those_of_reading_disks_too(here: InProcess) -> None:
    """For the screenshot, which lies on a datastore; backups need them anyway."""
    with with_nothing_but(here, *_RECOVERY, Purpose.READ_DISKS) as target:
        record = here.start(target=target, power_on=True).record
        state, key = TargetState(record.target_state), record.vm_key or ""
        assert target.screenshot(state, key, CancelToken()).startswith(b"\x89PNG")
        here.discard(record.session_id, target)
