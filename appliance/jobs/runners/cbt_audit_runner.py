"""Runs of CBT audit jobs: much of what is reported unchanged is read again, VM by VM.

An audit needs a frozen disk and its change list, so it is a backup with a larger share to audit,
and makes a recovery point as any backup does. It never stands in the way of one: it takes one VM
at a time, and begins none while a backup job runs.

Thread model: as the engine's; a run belongs to one thread.
"""

from __future__ import annotations

from appliance.base.clock import Clock
from appliance.base.reasons import Reason
from appliance.base.run_context import Stage
from appliance.catalog.job import CbtAuditJob
from appliance.jobs.cbt_audit import AuditPolicy
from appliance.jobs.engine import RunOrder, RunReport
from appliance.jobs.job_selection import read_inventory, select_for_job, tags_of
from appliance.jobs.live_run import LiveRun
from appliance.jobs.runners.backup_runner import (
    back_up_selected,
    bandwidth_of,
    reasons_of_bandwidth,
)
from appliance.jobs.runners.site import RunRoom
from appliance.jobs.runners.vm_results import reasons_of_orphans, report_of
from appliance.jobs.vm_backup import VmBackupOptions, VmResult
from appliance.sources.contract import ConsistencyPolicy

_LOOK_S = 1.0


class CbtAuditRunner:
    def __init__(self, room: RunRoom, clock: Clock) -> None:
        self._room = room
        self._clock = clock

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        job, policy = order.saved.job, order.saved.policy
        assert isinstance(job, CbtAuditJob)
        site = self._room.site
        live.begins("reading the inventory")
        results: list[VmResult] = []
        limits: dict[str, Stage | None] = {}
        with site.open_sources(job.select.hosts) as opened:
            orphans = site.clean_up(opened.sources, live.context.cancel)
            inventory = read_inventory(
                opened.sources, tags_of([job.select]), site.point_names(), opened.failures
            )
            selection = select_for_job(inventory, job.select)
            bandwidth = bandwidth_of(policy, self._clock)
            options = VmBackupOptions(
                consistency=ConsistencyPolicy(
                    wanted=policy.consistency.wanted, least=policy.consistency.least
                ),
                audit=AuditPolicy(percent=job.percent),
                vms_at_once=1,
                bandwidth=bandwidth,
            )
            known = [vm for vm in selection.vms if vm.has_points]
            for vm in known:
                self._let_backups_pass(live)
                live.begins(f"auditing {vm.point_name}")
                done = back_up_selected(self._room, order, live, [vm], options)
                results += done.results
                limits |= done.limits
        reasons = [
            *selection.reasons,
            *reasons_of_orphans(orphans),
            *reasons_of_bandwidth(bandwidth),
            *_not_audited(len(selection.vms) - len(known)),
        ]
        return report_of(results, inventory.failures, reasons, limits, live, {})

    def _let_backups_pass(self, live: LiveRun) -> None:
        """Raises CancelledError."""
        cancel = live.context.cancel
        cancel.check()
        while self._room.site.backup_goes_on():
            live.begins("waiting for backups")
            cancel.wait(_LOOK_S)
            cancel.check()


def _not_audited(count: int) -> list[Reason]:
    if not count:
        return []
    return [
        Reason(
            "audit.no-point",
            f"{count} VMs have no recovery point that their change lists could be compared with",
            "back them up first",
            warning=False,
        )
    ]
