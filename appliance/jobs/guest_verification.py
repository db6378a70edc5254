"""One guest of a verification in the appliance's own sandbox.

Each disk is an overlay over the point, served over NBD on a Unix socket in a private folder, and
booted by QEMU. `close` leaves no process and no folder; what the guest wrote is discarded.
Thread model: one thread.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path

from appliance.base.atomic import replace_file
from appliance.base.run_context import RunContext
from appliance.jobs.boot_stages import judge_boot, judge_screen
from appliance.jobs.guest_stages import StagedGuest
from appliance.jobs.published_point import PublishedPoint
from appliance.jobs.verification_outcome import BootOutcome
from appliance.jobs.verification_plan import GuestPlan
from appliance.jobs.verification_stages import StageName, passed
from appliance.repository.boot_profile import save_profile
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sandbox.boot import BootReport, GuestBoot
from appliance.sandbox.network import IsolatedNetwork
from appliance.sandbox.probes import PING_IMPOSSIBLE
from appliance.sandbox.spec import MachineSpec, address_of


class GuestVerification(StagedGuest):
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
        super().__init__(repository, plan, manifest, context, artifact_folder=artifact_folder)
        self._place = place
        self._stack = ExitStack()
        self._published: PublishedPoint | None = None
        self._guest: GuestBoot | None = None
        self._start_seconds = 0.0

    @property
    def ready(self) -> bool:
        return self._guest is not None and self._guest.ready

    @property
    def recovery_s(self) -> float | None:
        if self._boot is None or self._boot.report.ready_s is None:
            return None
        return self._boot.start_seconds + self._boot.report.ready_s

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
