"""Retention runs: recovery points that no policy keeps any more are forgotten.

After a backup run of a job: for the VMs that the job means. Where several backup jobs mean a VM, a
point goes only if the policy of none of them keeps it; one without rules keeps everything. A
retention job of its own goes by its own policy, over the VMs it names by their points.

The newest point of a VM is always kept, and what a recovery session uses. Days and weeks are those
of each policy's time zone. The space is freed by the next garbage collection.

Thread model: as the engine's; a run belongs to one thread.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from pydantic import TypeAdapter, ValidationError

from appliance.base.reasons import Reason
from appliance.catalog.job import RetentionJob, RunKind
from appliance.catalog.job_runs import JobRuns
from appliance.catalog.policy import Policy
from appliance.jobs.engine import RunOrder, RunReport, judged
from appliance.jobs.live_run import LiveRun
from appliance.jobs.runners.site import RunRoom
from appliance.repository.manifest import Manifest
from appliance.repository.retention import (
    Action,
    Decision,
    PointSummary,
    RetentionPolicy,
    plan_retention,
)

_COVERAGE: TypeAdapter[dict[str, list[str]]] = TypeAdapter(dict[str, list[str]])


class RetentionRunner:
    def __init__(self, room: RunRoom, job_runs: JobRuns) -> None:
        self._room = room
        self._job_runs = job_runs

    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        repository = self._room.backups.repository
        live.begins("planning")
        manifests, damaged = repository.points.readable()
        by_vm: dict[str, list[Manifest]] = defaultdict(list)
        for manifest in manifests:
            by_vm[manifest.vm].append(manifest)
        policies = self._policies(order, by_vm)
        remove, keep_count = _plan(by_vm, policies)
        in_use = self._room.site.points_in_use()
        spared = [decision for decision in remove if decision.point_id in in_use]
        live.begins("removing recovery points")
        removed = []
        for decision in remove:
            if decision.point_id not in in_use:
                live.context.cancel.check()
                repository.points.forget(decision.point_id)
                removed.append(decision)
        reasons = [*_in_use(spared), *_unreadable(len(damaged))]
        return RunReport(
            outcome=judged(reasons),
            reasons=tuple(reasons),
            result={
                "vm_count": len(policies),
                "kept_count": keep_count + len(spared),
                "removed": [_document(decision) for decision in removed],
            },
        )

    def _policies(
        self, order: RunOrder, points: Mapping[str, Sequence[Manifest]]
    ) -> dict[str, list[Policy]]:
        """The policies that have a say, by VM; VMs that are not there are left alone."""
        job = order.saved.job
        if isinstance(job, RetentionJob):
            return {
                vm: [order.saved.policy]
                for vm in points
                if any(fnmatchcase(vm, pattern) for pattern in job.select.names)
                and not any(fnmatchcase(vm, pattern) for pattern in job.select.exclude)
            }
        saved = {each.name: each.policy for each in self._room.jobs.list()}
        saved[order.saved.name] = order.saved.policy
        return {
            vm: [saved[name] for name in {*names, order.saved.name} if name in saved]
            for vm, names in self._coverage(order.saved.name).items()
            if vm in points
        }

    def _coverage(self, job: str) -> dict[str, list[str]]:
        """What the newest backup run of the job found; nothing is removed without it."""
        try:
            return _COVERAGE.validate_python(
                self._job_runs.newest_result(job, RunKind.BACKUP, "coverage") or {}
            )
        except ValidationError:
            return {}


def _plan(
    by_vm: Mapping[str, Sequence[Manifest]], policies: Mapping[str, Sequence[Policy]]
) -> tuple[list[Decision], int]:
    """What every policy of a VM lets go; and how many points stay."""
    remove: list[Decision] = []
    keep_count = 0
    for vm, voices in sorted(policies.items()):
        points = [
            PointSummary(point_id=manifest.id, vm=vm, created_at=manifest.created_at)
            for manifest in by_vm[vm]
        ]
        plans = [
            plan_retention(points, RetentionPolicy(**policy.retention.model_dump()), policy.zone)
            for policy in voices
        ]
        for decisions in zip(*plans, strict=True):
            if all(decision.action is Action.REMOVE for decision in decisions):
                remove.append(decisions[0])
            else:
                keep_count += 1
    return remove, keep_count


def _document(decision: Decision) -> dict[str, Any]:
    return {
        "point_id": decision.point_id,
        "vm": decision.vm,
        "created_at": decision.created_at.isoformat(),
        "reason": decision.reason,
    }


def _in_use(spared: Sequence[Decision]) -> list[Reason]:
    if not spared:
        return []
    names = ", ".join(decision.point_id for decision in spared[:3])
    return [
        Reason(
            "retention.point-in-use",
            f"{len(spared)} points stay because recovery sessions use them: {names}",
            "finalise or discard the sessions",
            warning=False,
        )
    ]


def _unreadable(count: int) -> list[Reason]:
    if not count:
        return []
    return [
        Reason(
            "retention.unreadable-points",
            f"{count} recovery points cannot be read and were left alone",
            "run `holdfast repo check`",
        )
    ]
