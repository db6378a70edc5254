"""Roll the VM that a recovery point is of back to it, writing only what differs: `restore vm
--in-place`.

    checks -> off -> frozen: what changed since the point, or compared by hash -> snapshot gone
    -> areas journalled -> tracking reset -> written -> frozen again: compared by hash -> done

Invariants:

- Nothing is written before every check has passed, the snapshot is gone (writes must go to the
  base, not to a delta), the areas to be written are on stable storage, and changed block tracking
  was reset: whatever happens from then on, no later backup trusts a change list that does not know
  of our writes, and the next roll-back writes those areas again.
- A failure before the first write leaves the VM as it was, powered on again if it was on. One
  after it is a `HalfRolledBackError`: the VM stays off, and the same command ends the work.
- A change list may miss something; the comparison afterwards finds that, and it is written too.

It is for logical damage (deleted, encrypted, broken by an update), never for failing storage.

Thread model: `roll_back_vm` blocks; the VM's lock keeps backups and other roll-backs away.
Source: design notes on vSphere, section 8.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import ApplianceError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.blocks.extents import Extent, normalise, total_bytes
from appliance.jobs.point_identity import known_state
from appliance.jobs.rollback_checks import (
    HalfRolledBackError,
    NotVerifiedError,
    check_disks,
    check_ready,
    find_original,
    refuse_unless_writable,
)
from appliance.jobs.rollback_comparison import DiskPlan, RollbackComparison
from appliance.jobs.rollback_contract import (
    PhaseBegins,
    RollbackMode,
    RollbackOptions,
    RollbackResult,
    RolledBackDisk,
)
from appliance.jobs.rollback_journal import RollbackJournal, Touched
from appliance.jobs.rollback_writer import write_extents
from appliance.jobs.vm_lock import vm_lock
from appliance.jobs.vm_restore import NotAVmPointError, RestoreRoom, not_started, restore_run
from appliance.repository.manifest import Manifest
from appliance.sources.contract import SourceVm, VmSource
from appliance.sources.frozen import KnownState
from appliance.targets.contract import ExistingDisk, Power, VmTarget

log = EventLog(__name__)

_ROUNDS = 3  # of writing and comparing; more than two means that something else writes


def roll_back_vm(
    room: RestoreRoom,
    state_folder: Path,
    source: VmSource,
    target: VmTarget,
    manifest: Manifest,
    options: RollbackOptions,
    context: RunContext,
    phase_begins: PhaseBegins = lambda name, progress: None,
) -> RollbackResult:
    """Make the VM's disks those of the point.

    `source` and `target` are the same hypervisor.

    Raises:
        NotAVmPointError, OriginalGoneError, VmRunsError, VmHasSnapshotsError, DisksDifferError,
        NoWriterError, VmBusyError: nothing was done.
        TrackingNotResetError: nothing was written.
        HalfRolledBackError: it broke while the disks were written; its cause says why.
        NotVerifiedError: the disks still differ from the point.
        SourceError, TargetError, CorruptError, CancelledError: before anything was written.
    """
    state = known_state(manifest)
    if state is None:
        raise NotAVmPointError(f"{manifest.point_id} does not say of which VM it is")
    vm = find_original(source, manifest)
    with (
        vm_lock(state_folder / "vm-locks", manifest.vm),
        restore_run(room, target.name, manifest.vm) as run_id,
    ):
        rollback = _Rollback(
            room=room,
            source=source,
            target=target,
            manifest=manifest,
            state=state,
            vm=vm,
            run_id=run_id,
            journal=RollbackJournal(state_folder / "rollbacks", vm.identity.key),
            options=options,
            context=context,
            phase_begins=phase_begins,
        )
        return rollback.run()


@dataclass(kw_only=True)
class _Rollback:
    """One attempt; belongs to one thread."""

    room: RestoreRoom
    source: VmSource
    target: VmTarget
    manifest: Manifest
    state: KnownState
    vm: SourceVm
    run_id: RunId
    journal: RollbackJournal
    options: RollbackOptions
    context: RunContext
    phase_begins: PhaseBegins

    def __post_init__(self) -> None:
        self._reasons: list[Reason] = []
        self._writing = False
        self._tracking_reset = False
        self._written: dict[int, int] = {}
        self._comparison = RollbackComparison(
            repository=self.room.repository,
            source=self.source,
            vm=self.vm,
            manifest=self.manifest,
            state=self.state,
            run_id=self.run_id,
            transports=self.options.transports,
            context=self.context,
            phase=self._phase,
        )

    def run(self) -> RollbackResult:
        started_s = time.perf_counter()
        was_on = self._prepare()
        try:
            plans = self._comparison.plan(self._touched())
            disks = self._settled()
            self._write_all(plans, disks)
        except BaseException as error:
            told = isinstance(error, NotVerifiedError) or not isinstance(error, ApplianceError)
            if self._writing and not told:
                raise HalfRolledBackError(f"{self.vm.name}: {error}") from error
            if was_on and not self._writing:
                self._power_on_again()
            raise
        if self.options.configuration:
            self._reasons += self.target.roll_back_configuration(
                self.vm.key, self.manifest.hardware, dict(self.options.networks)
            )
        return RollbackResult(
            run_id=self.run_id,
            vm=self.vm.name,
            key=self.vm.key,
            disks=tuple(self._outcome(plan) for plan in plans),
            verified=self.options.verify,
            powered_on=self.options.power_on and self._powered_on(),
            seconds=time.perf_counter() - started_s,
            vm_reasons=tuple(dict.fromkeys(self._reasons)),
        )

    # Before anything is written

    def _prepare(self) -> bool:
        """Check everything, power the VM off; whether it was on."""
        existing = self.target.look(self.vm.key)
        check_ready(existing, may_power_off=self.options.power_off)
        matched = check_disks(existing, self.manifest, self.state)
        refuse_unless_writable(self.target, existing, matched.values(), self.run_id)
        self._reasons += [
            _disk_left(disk) for disk in existing.disks if disk not in matched.values()
        ]
        if existing.power is Power.OFF:
            return False
        self.target.power_off(
            self.vm.key, within_s=self.options.shutdown_within_s, cancel=self.context.cancel
        )
        return True

    def _touched(self) -> Touched:
        return self.journal.touched(frozenset(disk.number for disk in self.manifest.disks))

    def _settled(self) -> dict[int, ExistingDisk]:
        """The disks as they are now that the snapshot is gone."""
        self._reasons += self.source.leftovers(self.run_id)
        existing = self.target.look(self.vm.key)
        check_ready(existing, may_power_off=False)
        return check_disks(existing, self.manifest, self.state)

    # Writing

    def _write_all(self, plans: list[DiskPlan], disks: dict[int, ExistingDisk]) -> None:
        """Write, and compare until nothing differs, if that is wanted."""
        extents = {plan.number: plan.extents for plan in plans}
        compared = all(plan.mode is RollbackMode.COMPARED for plan in plans)
        if compared and not any(extents.values()):
            self.journal.forget()  # that was the comparison
            return
        for _ in range(_ROUNDS):
            if any(extents.values()):
                self._begin_writing(extents)
                for number in sorted(extents):
                    self._write(number, extents[number], disks[number])
            if self.options.verify:
                extents = self._comparison.differences()
                self._reasons += self.source.leftovers(self.run_id)
            if not self.options.verify or not any(extents.values()):
                self._writing = False
                self.journal.forget()
                return
            self._reasons.append(_missed(sum(map(total_bytes, extents.values()))))
            disks = self._settled()
        raise NotVerifiedError(f"{self.vm.name}: its disks keep differing from the point")

    def _begin_writing(self, extents: dict[int, list[Extent]]) -> None:
        """From the first write on, no change list of before and no earlier plan is complete."""
        self.journal.write(self._union(extents))
        if not self._tracking_reset:
            self._reasons += self.target.reset_tracking(self.vm.key, self.run_id)
            self._tracking_reset = True

    def _union(self, extents: dict[int, list[Extent]]) -> dict[int, list[Extent] | None]:
        before = self.journal.touched(frozenset(extents))
        union: dict[int, list[Extent] | None] = dict(before)
        for number, own in extents.items():
            earlier = before.get(number, [])
            union[number] = None if earlier is None else normalise([*earlier, *own])
        return union

    def _write(self, number: int, extents: list[Extent], disk: ExistingDisk) -> None:
        if not extents:
            return
        write = RunContext(self.context.cancel, self._phase(f"write disk {number}"))
        with closing(self.room.repository.open_image(self.manifest, number)) as image:
            sink = self.target.open_disk(self.vm.key, disk, self.run_id)
            self._writing = True
            try:
                write_extents(image, sink, extents, write)
            finally:
                sink.close()
        self._written[number] = self._written.get(number, 0) + total_bytes(extents)

    # The end

    def _phase(self, name: str) -> Progress:
        progress = self.context.progress.part()
        self.phase_begins(name, progress)
        return progress

    def _outcome(self, plan: DiskPlan) -> RolledBackDisk:
        return RolledBackDisk(
            number=plan.number,
            label=plan.label,
            size_bytes=plan.size_bytes,
            mode=plan.mode,
            written_bytes=self._written.get(plan.number, 0),
            reasons=plan.reasons,
        )

    def _powered_on(self) -> bool:
        try:
            self.target.power_on(self.vm.key, same_vm=True, cancel=self.context.cancel)
        except ApplianceError as error:
            log.warning("VM not powered on after its roll-back", vm=self.vm.name, error=error)
            self._reasons.append(not_started(error))
            return False
        return True

    def _power_on_again(self) -> None:
        """Nothing was written, so the VM is what it was: let it be on again."""
        try:
            self.target.power_on(self.vm.key, same_vm=True, cancel=CancelToken())
        except ApplianceError as error:
            log.error("VM not powered on again", vm=self.vm.name, error=error)


def _disk_left(disk: ExistingDisk) -> Reason:
    return Reason(
        "restore.disk-left-alone",
        f"{disk.label} is not in the recovery point and was left as it is",
        "remove it in the hypervisor's client if the VM did not have it then",
    )


def _missed(missed_bytes: int) -> Reason:
    return Reason(
        "restore.change-list-missed",
        f"{missed_bytes} bytes differed from the point after what had changed was written; they "
        "were written too",
        "back the VM up soon; look for failing storage if this comes back",
    )
