"""What the stages of every guest under verification share, wherever it is booted.

    prepare()   chunks re-hashed, file systems checked
    start()     published, registered, powered on, ready, probed
    script()    commands inside the guest, once every guest of the application is up
    finish()    screenshot judged, evidence kept, switched off, everything discarded

Stages run in order, each timed, each with a verdict. What goes wrong is a verdict, not an
exception, but for cancelling. `close` may be called at any time and leaves nothing of the guest.
Thread model: one thread.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.jobs.point_hashes import HashOutcome, verify_hashes
from appliance.jobs.published_point import PublishedPoint
from appliance.jobs.verification_outcome import BootOutcome, GuestOutcome, KeptFile
from appliance.jobs.verification_plan import GuestPlan
from appliance.jobs.verification_stages import (
    NOT_ASKED,
    STAGE_BEFORE_FAILED,
    StageName,
    StageResult,
    Verdict,
    failed,
    in_order,
    passed,
    skipped,
)
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.file_system_check import CHECK_FAILED, VolumeCheck, check_disk
from appliance.sandbox.network import IsolatedNetwork
from appliance.sandbox.picture import ScreenJudgement

_DETAIL_CHARACTERS_MAX = 2000
_BOOT_STAGES = (
    StageName.PUBLISHED,
    StageName.REGISTERED,
    StageName.POWERED_ON,
    StageName.READY,
    StageName.PROBED,
    StageName.SCRIPT,
    StageName.SCREENSHOT,
    StageName.CLEAN_UP,
)
DEPENDENCY_FAILED = Reason(
    "verify.dependency-failed",
    "a guest that this one needs did not come up, so this one was not started",
    "see that guest",
)


class StagedGuest(ABC):
    def __init__(
        self,
        repository: Repository,
        plan: GuestPlan,
        manifest: Manifest,
        context: RunContext,
        *,
        artifact_folder: Path,
    ) -> None:
        self.plan = plan
        self.manifest = manifest
        self._repository = repository
        self._context = context
        self._folder = artifact_folder
        self._stages: dict[StageName, StageResult] = {}
        self._hashes: HashOutcome | None = None
        self._volumes: list[VolumeCheck] = []
        self._boot: BootOutcome | None = None  # of the sandbox
        self._screen: ScreenJudgement | None = None
        self._notes: list[Reason] = []

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether those that wait for it may start."""

    @property
    @abstractmethod
    def recovery_s(self) -> float | None:
        """From the request until it was ready; None: it did not come to that."""

    @abstractmethod
    def start(self, network: IsolatedNetwork | None) -> None:
        """Publish, boot and wait until it is ready, or not. Raises CancelledError."""

    @abstractmethod
    def script(self) -> None:
        """Raises CancelledError."""

    @abstractmethod
    def finish(self) -> None:
        """Judge the screen, switch off, discard. Raises CancelledError."""

    @abstractmethod
    def close(self) -> None:
        """Idempotent."""

    def prepare(self) -> None:
        """Raises CancelledError."""
        if self.plan.hash_share > 0:
            with self._stage(StageName.HASHED):
                self._hash()
        if self.plan.check_file_systems:
            if self._has_failed(StageName.HASHED):
                self._put(skipped(StageName.FILE_SYSTEMS, STAGE_BEFORE_FAILED))
            else:
                with self._stage(StageName.FILE_SYSTEMS):
                    self._check_file_systems()

    def refuse(self, name: str) -> None:
        """Another guest that this one needs is not up: do not start it."""
        self._put(failed(StageName.PUBLISHED, 0.0, DEPENDENCY_FAILED, name))
        self._skip_rest()

    def outcome(self, started_at: datetime) -> GuestOutcome:
        return GuestOutcome(
            plan=self.plan,
            manifest=self.manifest,
            stages=in_order(list(self._stages.values())),
            started_at=started_at,
            hashes=self._hashes,
            volumes=tuple(self._volumes),
            boot=self._boot,
            screen=self._screen,
            recovery_s=self.recovery_s,
            evidence=tuple(self._kept_files()),
            notes=tuple(self._notes),
        )

    def _hash(self) -> None:
        share = self.plan.hash_share
        self._hashes = verify_hashes(self._repository, self.manifest, self._context, share=share)
        detail = f"{self._hashes.chunk_count} chunks, {share:.0%} of the point"
        self._put(passed(StageName.HASHED, self._hashes.seconds, detail))

    def _check_file_systems(self) -> None:
        began_s = time.perf_counter()
        with (
            PublishedPoint(self._repository, self.manifest) as published,
            tempfile.TemporaryDirectory(prefix="holdfast-check-") as name,
        ):
            folder = Path(name)
            folder.chmod(0o711)  # the checker, who is nobody, has to get to the volume in it
            for disk in self.manifest.disks:
                self._volumes += check_disk(
                    disk.number,
                    published.overlays[disk.number],
                    published.disk(disk.number),
                    folder,
                    timeout_s=self.plan.file_system_timeout_s,
                    cancel=self._context.cancel,
                )
        self._put(_judge_volumes(self._volumes, time.perf_counter() - began_s))
        self._notes += [
            check.reason
            for check in self._volumes
            if check.reason is not None and not check.damaged and check.reason.warning
        ]

    def _kept_files(self) -> Iterator[KeptFile]:
        for name in ("screen.png", "screen.txt", "serial.log"):
            path = self._folder / name
            if self._was_on and path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield KeptFile(name=name, path=path, size_bytes=path.stat().st_size, sha256=digest)

    @property
    def _was_on(self) -> bool:
        result = self._stages.get(StageName.POWERED_ON)
        return result is not None and result.verdict is Verdict.PASSED

    @contextmanager
    def _stage(self, name: StageName) -> Iterator[None]:
        """What an error of ours breaks off is a failed stage, with the error as its reason."""
        began_s = time.perf_counter()
        self._context.cancel.check()
        try:
            yield
        except CancelledError:
            raise
        except ApplianceError as error:
            self._put(failed(name, time.perf_counter() - began_s, reason_of(error)))

    def _put(self, result: StageResult) -> None:
        self._stages[result.stage] = result

    def _has_failed(self, name: StageName) -> bool:
        return name in self._stages and self._stages[name].verdict is Verdict.FAILED

    def _skip_rest(self, but: tuple[StageName, ...] = ()) -> None:
        for name in _BOOT_STAGES:
            if name not in self._stages and name not in but:
                self._put(skipped(name, STAGE_BEFORE_FAILED))


def reason_of(error: ApplianceError) -> Reason:
    next_step = " ".join((type(error).__doc__ or "").split())
    return Reason.relayed(error.code, str(error)[:_DETAIL_CHARACTERS_MAX], next_step)


def _judge_volumes(volumes: list[VolumeCheck], seconds: float) -> StageResult:
    detail = "; ".join(_shown(check) for check in volumes)[:_DETAIL_CHARACTERS_MAX]
    damaged = [check.reason for check in volumes if check.damaged and check.reason]
    if damaged:
        return failed(StageName.FILE_SYSTEMS, seconds, damaged[0], detail)
    if any(check.reason == CHECK_FAILED for check in volumes):
        return skipped(StageName.FILE_SYSTEMS, CHECK_FAILED, detail)
    if any(check.reason is None for check in volumes):
        return passed(StageName.FILE_SYSTEMS, seconds, detail)
    reasons = [check.reason for check in volumes if check.reason]
    return skipped(StageName.FILE_SYSTEMS, reasons[0] if reasons else NOT_ASKED, detail)


def _shown(check: VolumeCheck) -> str:
    place = f"disk {check.disk}" + (f" partition {check.number}" if check.number else "")
    if check.reason is None:
        return f"{place} {check.kind}: sound"
    said = f" ({check.detail})" if check.damaged else ""
    return f"{place} {check.kind or ''}: {check.reason.code}{said}"
