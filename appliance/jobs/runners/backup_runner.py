"""Runs of backup jobs: hosts -> selection of today -> `vm_backup` -> one report.

A run that repeats a failed or interrupted one leaves out the VMs that got their point in it. At
the end of the policy's window no further VM is begun; those that are going on end in their own
time. The coverage (which backup jobs mean which VM) goes into the result: retention needs it.

Thread model: a runner serves several runs at once; each belongs to its own thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, Stage
from appliance.blocks.rate_limit import RateLimit
from appliance.catalog.job import BackupJob, RunKind, VmSelection
from appliance.catalog.job_runs import RunCause
from appliance.catalog.policy import Policy
from appliance.jobs.calendar import is_open
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.engine import RunOrder, RunReport
from appliance.jobs.job_selection import (
    InventoryVm,
    JobInventory,
    read_inventory,
    select_for_job,
    selects,
    tags_of,
)
from appliance.jobs.live_run import LiveRun
from appliance.jobs.runners.site import RunRoom
from appliance.jobs.runners.vm_results import reasons_of_orphans, report_of
from appliance.jobs.vm_backup import Followers, VmBackupOptions, VmResult, back_up_vms
from appliance.jobs.vm_selection import SelectedVm
from appliance.sources.contract import ConsistencyPolicy, Orphan
from appliance.sources.frozen import FrozenDisk

_BUSY_WAIT_S = 3600.0  # an audit or a person's backup of the same VM


class WindowClosedError(ApplianceError):
    """The policy's window had closed before this VM's turn came.

    Begin earlier, widen the window, or let more VMs go at a time.
    """

    code = "backup.window-closed"


class BackupRunner:
    def __init__(self, room: RunRoom, clock: Clock) -> None:
        self._room = room
        self._clock = clock

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        job, policy, run = order.saved.job, order.saved.policy, order.run
        assert isinstance(job, BackupJob)
        room = self._room
        others = {
            saved.name: saved.job.select
            for saved in room.jobs.list()
            if isinstance(saved.job, BackupJob)
        }
        live.begins("reading the inventory")
        with room.site.open_sources(job.select.hosts) as opened:
            orphans = room.site.clean_up(opened.sources, live.context.cancel)
            names = room.site.point_names()
            tags = tags_of([job.select, *others.values()])
            inventory = read_inventory(opened.sources, tags, names, opened.failures)
            selection = select_for_job(inventory, job.select)
            done = room.backups.runs.backed_up_in(run.first_run) if run.attempt > 1 else frozenset()
            vms = [vm for vm in selection.vms if vm.point_name not in done]
            bandwidth = bandwidth_of(policy, self._clock)
            by_schedule = run.cause is not RunCause.MANUAL
            options = VmBackupOptions(
                consistency=ConsistencyPolicy(
                    wanted=policy.consistency.wanted, least=policy.consistency.least
                ),
                guest_logs=policy.guest_logs,
                audit=AuditPolicy(percent=policy.cbt_audit_percent),
                vms_at_once=policy.vms_at_once,
                bandwidth=bandwidth,
                check_turn=self._turn(policy) if by_schedule else lambda: None,
                busy_wait_s=_BUSY_WAIT_S,
            )
            live.begins("backing up")
            outcome = back_up_selected(room, order, live, vms, options)
        reasons = [
            *selection.reasons,
            *reasons_of_orphans(orphans),
            *reasons_of_bandwidth(bandwidth),
        ]
        report = report_of(
            outcome.results,
            inventory.failures,
            reasons,
            outcome.limits,
            live,
            {
                "selected_vm_count": len(selection.vms),
                "removed_orphans": [_orphan(each) for each in orphans if not each.failure],
                "coverage": _coverage(job.select, inventory, others),
            },
        )
        made = any(result.backup is not None for result in outcome.results)
        prunes = made and not policy.retention.empty
        return replace(report, follow_up=RunKind.RETENTION if prunes else None)

    def _turn(self, policy: Policy) -> Callable[[], None]:
        def check() -> None:
            if not is_open(policy.windows, policy.zone, self._clock.now()):
                raise WindowClosedError("the window closed before the VM's turn")

        return check


@dataclass(frozen=True, slots=True, kw_only=True)
class BackedUp:
    results: list[VmResult]
    limits: dict[str, Stage | None]  # by VM


def back_up_selected(
    room: RunRoom,
    order: RunOrder,
    live: LiveRun,
    vms: Sequence[SelectedVm],
    options: VmBackupOptions,
) -> BackedUp:
    """Back up as part of the job's run, shown live."""
    limits: dict[str, Stage | None] = {}
    backups = replace(room.backups, runs=room.backups.runs.within(order.run.run_id))

    def disk_begins(vm: SelectedVm, disk: FrozenDisk, progress: Progress) -> None:
        live.disk_begins(vm.point_name, f"disk {disk.number} ({disk.label})", progress)

    def vm_ends(result: VmResult) -> None:
        limits[result.vm] = live.vm_ends(result.vm)

    live.expects_vms(len(vms))
    followers = Followers(disk_begins=disk_begins, vm_ends=vm_ends)
    results = back_up_vms(backups, vms, options, live.context, followers)
    return BackedUp(results=results, limits=limits)


def bandwidth_of(policy: Policy, clock: Clock) -> RateLimit | None:
    """The limit that all disks of a run share; None: the policy has none."""
    if not policy.bandwidth:
        return None
    known: list[tuple[datetime, float | None]] = []

    def now_allowed() -> float | None:
        now = clock.now()
        if not known or abs(now - known[0][0]) >= timedelta(seconds=1):  # not at every read
            known[:] = [(now, allowed_rate(policy, now))]
        return known[0][1]

    return RateLimit(now_allowed, clock=clock)


def allowed_rate(policy: Policy, now: datetime) -> float | None:
    """Bytes per second at that moment: the lowest of the rules that hold; None: no limit."""
    rates = [
        rule.bytes_per_s
        for rule in policy.bandwidth
        if rule.window is None or is_open([rule.window], policy.zone, now)
    ]
    return min(rates, default=None)


def reasons_of_bandwidth(limit: RateLimit | None) -> list[Reason]:
    if limit is None or limit.waited_s < 1:
        return []
    return [
        Reason(
            "limit.bandwidth",
            f"reads waited {limit.waited_s:.0f} s in all for the policy's bandwidth limit",
            "none, unless the run takes too long: then raise the limit",
            warning=False,
        )
    ]


def _coverage(
    own: VmSelection, inventory: JobInventory, jobs: dict[str, VmSelection]
) -> dict[str, list[str]]:
    """Names of the backup jobs that mean each VM of this job, by the name of its points."""

    def meaning(found: InventoryVm) -> list[str]:
        return [name for name, selection in jobs.items() if selects(selection, found)]

    return {found.vm.point_name: meaning(found) for found in inventory.vms if selects(own, found)}


def _orphan(orphan: Orphan) -> dict[str, str]:
    return {"vm": orphan.vm, "what": orphan.what, "run_id": orphan.run_id}
