"""What a verification found: values, for the certificate, the report, the catalog and `--json`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.base.reasons import Reason
from appliance.jobs.point_hashes import HashOutcome
from appliance.jobs.verification_plan import GuestPlan
from appliance.jobs.verification_stages import StageResult, Verdict, verdict_of, verdict_of_all
from appliance.repository.manifest import Manifest
from appliance.sandbox.boot import BootReport
from appliance.sandbox.file_system_check import VolumeCheck
from appliance.sandbox.picture import ScreenJudgement

RTO_EXCEEDED = Reason(
    "verify.rto-exceeded",
    "the guest was ready later than its recovery time objective allows",
    "give it faster storage or more memory and processors, or a longer objective",
)
RPO_EXCEEDED = Reason(
    "verify.rpo-exceeded",
    "the newest recovery point is older than the recovery point objective allows",
    "look why there is no newer backup, or back up more often",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootOutcome:
    report: BootReport
    start_seconds: float  # from the request until QEMU is started
    read_bytes: int  # that the guest asked of the point
    prefetched_bytes: int  # named by the boot profile used, 0 without one


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptFile:
    """A piece of evidence that lies beside the report."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestOutcome:
    plan: GuestPlan
    manifest: Manifest
    stages: tuple[StageResult, ...]  # all, in order
    started_at: datetime  # of the run
    hashes: HashOutcome | None
    volumes: tuple[VolumeCheck, ...]
    boot: BootOutcome | None  # of the sandbox
    screen: ScreenJudgement | None
    recovery_s: float | None  # from the request until it was ready; None: it never was
    evidence: tuple[KeptFile, ...]
    notes: tuple[Reason, ...]  # of the parts, such as a probe that is impossible here

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.stages)

    @property
    def point_age_s(self) -> float:
        """What would be lost: from the state in the point to the beginning of the run."""
        return max((self.started_at - self.manifest.created_at).total_seconds(), 0.0)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Everything that is worth saying: objectives missed, notes, stages that did not pass."""
        found = []
        if self.plan.rto is not None and (self.recovery_s or 0) > self.plan.rto.total_seconds():
            found.append(RTO_EXCEEDED)
        if self.plan.rpo is not None and self.point_age_s > self.plan.rpo.total_seconds():
            found.append(RPO_EXCEEDED)
        found += self.notes
        found += [
            stage.reason
            for stage in self.stages
            if stage.reason is not None and stage.reason.warning
        ]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationOutcome:
    run_id: str
    started_at: datetime
    ended_at: datetime
    guests: tuple[GuestOutcome, ...]

    @property
    def verdict(self) -> Verdict:
        return verdict_of_all([guest.verdict for guest in self.guests])

    @property
    def reasons(self) -> tuple[Reason, ...]:
        return tuple(dict.fromkeys(reason for guest in self.guests for reason in guest.reasons))
