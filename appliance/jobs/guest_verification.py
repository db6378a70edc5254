"""One guest of a verification: its stages, run in order, each timed, each with a verdict.

    prepare()   chunks re-hashed, file systems checked
    start()     published, registered, powered on, ready, probed
    script()    commands inside the guest, once every guest of the application is up
    finish()    screenshot judged, evidence kept, switched off, everything discarded

What goes wrong is a verdict, not an exception, but for cancelling. `close` may be called at any
time and leaves no process and no folder; what the guest wrote is discarded.
Thread model: one thread.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path

from appliance.base.atomic import replace_file
from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.jobs.boot_stages import judge_boot, judge_screen
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
from appliance.repository.boot_profile import save_profile
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.boot import BootReport, GuestBoot
from appliance.sandbox.file_system_check import VolumeCheck, check_disk
from appliance.sandbox.network import IsolatedNetwork
from appliance.sandbox.picture import ScreenJudgement
from appliance.sandbox.probes import PING_IMPOSSIBLE
from appliance.sandbox.spec import MachineSpec, address_of

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


class GuestVerification:
    def __init__(
        self,
        repository: Repository,
        plan: GuestPlan,
        manifest: Manifest,
        context: RunContext,
        *,
        artifact_folder: Path,
        place: int = 0,
    ) -> None:
        """`place`: in the isolated network of the application."""
        self.plan = plan
        self.manifest = manifest
        self._repository = repository
        self._context = context
        self._folder = artifact_folder
        self._place = place
        self._stack = ExitStack()
        self._stages: dict[StageName, StageResult] = {}
        self._hashes: HashOutcome | None = None
        self._volumes: list[VolumeCheck] = []
        self._published: PublishedPoint | None = None
        self._guest: GuestBoot | None = None
        self._start_seconds = 0.0
        self._boot: BootOutcome | None = None
        self._screen: ScreenJudgement | None = None
        self._notes: list[Reason] = []

    @property
    def ready(self) -> bool:
        return self._guest is not None and self._guest.ready

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

    def start(self, network: IsolatedNetwork | None) -> None:
        """Publish, boot and wait until it is ready, or not. Raises CancelledError."""
        if self.plan.boot is None:
            return
        if self._has_failed(StageName.HASHED):
            self._skip_rest()
            return
        began_s = time.perf_counter()
        with self._stage(StageName.PUBLISHED):
            published = PublishedPoint(self._repository, self.manifest)
            self._published = self._stack.enter_context(published)
            self._put(passed(StageName.PUBLISHED, time.perf_counter() - began_s))
        if self._published is not None:
            with self._stage(StageName.REGISTERED):
                self._power_on(self._published, network)
                self._start_seconds = time.perf_counter() - began_s
        if self._guest is None:
            self._skip_rest()
            return
        self._start_seconds -= self._guest.elapsed_s()
        with self._stage(StageName.READY):
            self._guest.get_ready(self.plan.boot.deadline_s, self._context.cancel)

    def refuse(self, name: str) -> None:
        """Another guest that this one needs is not up: do not start it."""
        self._put(failed(StageName.PUBLISHED, 0.0, DEPENDENCY_FAILED, name))
        self._skip_rest()

    def script(self) -> None:
        """Raises CancelledError."""
        if self._guest is not None and self.ready:
            with self._stage(StageName.SCRIPT):
                self._guest.run_scripts(self._context.cancel)

    def finish(self) -> None:
        """Judge the screen, switch off, discard. Raises CancelledError."""
        if self._guest is None or self._published is None:
            self.close()
            return
        with self._stage(StageName.SCREENSHOT):
            report = self._guest.finish()
            self._conclude(self._published, report)
        began_s = time.perf_counter()
        with self._stage(StageName.CLEAN_UP):
            self.close()
            power_off_s = self._boot.report.power_off_seconds if self._boot else 0.0
            seconds = power_off_s + time.perf_counter() - began_s
            how = self._boot.report.power_off.value if self._boot else "killed"
            self._put(passed(StageName.CLEAN_UP, seconds, how))

    def close(self) -> None:
        """Idempotent."""
        self._stack.close()

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

    def _power_on(self, published: PublishedPoint, network: IsolatedNetwork | None) -> None:
        options = self.plan.boot
        assert options is not None
        spec = MachineSpec(
            disks=published.disks,
            memory_mib=options.memory_mib,
            cpus=options.cpus,
            disk_interface=options.disk_interface,
            place=self._place,
        )
        guest = GuestBoot(
            spec,
            self.plan.probes,
            artifact_folder=self._folder,
            scripts=self.plan.scripts,
            plug=network.plug(self._place) if network is not None else None,
        )
        self._guest = self._stack.enter_context(guest)
        if any(probe.text == "ping" for probe in self.plan.probes):
            self._notes.append(PING_IMPOSSIBLE)

    def _conclude(self, published: PublishedPoint, report: BootReport) -> None:
        self._boot = BootOutcome(
            report=report,
            start_seconds=max(self._start_seconds, 0.0),
            read_bytes=published.read_bytes,
            prefetched_bytes=published.prefetched_bytes,
        )
        if report.screen_lines:
            replace_file(self._folder / "screen.txt", "\n".join(report.screen_lines).encode())
        for result in judge_boot(report, address_of(self._place)):
            if not self._has_failed(result.stage):
                self._put(result)
        result, self._screen = judge_screen(report)
        self._put(result)
        if report.ok:
            save_profile(self._repository, self.manifest, published.recorded_profile())

    def _kept_files(self) -> Iterator[KeptFile]:
        if self._boot is None:
            return
        for name in ("screen.png", "screen.txt", "serial.log"):
            path = self._folder / name
            if path.is_file():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                yield KeptFile(name=name, path=path, size_bytes=path.stat().st_size, sha256=digest)

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
            next_step = " ".join((type(error).__doc__ or "").split())
            reason = Reason.relayed(error.code, str(error)[:_DETAIL_CHARACTERS_MAX], next_step)
            self._put(failed(name, time.perf_counter() - began_s, reason))

    def _put(self, result: StageResult) -> None:
        self._stages[result.stage] = result

    def _has_failed(self, name: StageName) -> bool:
        return name in self._stages and self._stages[name].verdict is Verdict.FAILED

    def _skip_rest(self) -> None:
        for name in _BOOT_STAGES:
            if name not in self._stages:
                self._put(skipped(name, STAGE_BEFORE_FAILED))


def _judge_volumes(volumes: list[VolumeCheck], seconds: float) -> StageResult:
    detail = "; ".join(_shown(check) for check in volumes)[:_DETAIL_CHARACTERS_MAX]
    damaged = [check.reason for check in volumes if check.damaged and check.reason]
    if damaged:
        return failed(StageName.FILE_SYSTEMS, seconds, damaged[0], detail)
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
