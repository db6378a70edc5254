"""Boot a machine, wait for its probes, run its scripts, take the evidence, switch it off.

The one entry point for verification: whatever happens inside (a hung guest, a guest that answers
by drips, a cancelled run, an exception), no QEMU is left when `boot` returns or `GuestBoot` is
left. A guard thread kills the machine when a probe is still stuck well past the deadline.
Thread model: synchronous; several boots may run at once on different threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.sandbox.accelerator import Accelerator
from appliance.sandbox.errors import SandboxError
from appliance.sandbox.machine import Machine, PowerOff
from appliance.sandbox.network import Plug
from appliance.sandbox.probes import PING_IMPOSSIBLE, Attempt, PingProbe, Probe
from appliance.sandbox.serial_script import SerialScript
from appliance.sandbox.spec import MachineSpec

POWER_OFF_TIMEOUT_S = 30.0
SCRIPT_TIMEOUT_S = 120.0
_POLL_S = 0.1
_GUARD_MARGIN_S = 20.0  # time for a last screenshot of a guest that missed the deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    probe: str  # as written on the command line
    ok: bool
    seconds: float | None  # from the start of the machine until it passed
    detail: str  # may quote the guest
    reason: Reason | None = None  # why it was not even tried
    over_network: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptResult:
    script: str
    ok: bool
    seconds: float
    detail: str  # may quote the guest


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """Times are seconds since QEMU was started; None: it did not come to that."""

    accelerator: Accelerator
    accelerator_reason: Reason
    registered_s: float  # QEMU has taken the machine
    power_on_s: float  # and runs it
    first_serial_byte_s: float | None
    ready_s: float | None  # every probe had passed
    probes: tuple[ProbeResult, ...]
    scripts: tuple[ScriptResult, ...]
    screenshot_path: Path | None
    serial_log_path: Path
    screen_lines: tuple[str, ...]  # of a screen in text mode
    console_lines: tuple[str, ...]  # the last of the serial console
    evidence_seconds: float
    power_off: PowerOff
    power_off_seconds: float

    @property
    def ok(self) -> bool:
        return self.ready_s is not None and all(script.ok for script in self.scripts)


class GuestBoot:
    """One machine from power-on to report. Enter; `get_ready`, `run_scripts`, `finish`; leave."""

    def __init__(
        self,
        spec: MachineSpec,
        probes: Sequence[Probe],
        *,
        artifact_folder: Path,
        scripts: Sequence[SerialScript] = (),
        clock: Clock | None = None,
        plug: Plug | None = None,
    ) -> None:
        """Raises UsageError: no probe that could ever say that the guest works."""
        if all(isinstance(probe, PingProbe) for probe in probes):
            why = PING_IMPOSSIBLE.text if probes else "without one nothing says that it is ready"
            raise UsageError(f"a boot needs at least one probe that can pass: {why}")
        self._probes = tuple(probes)
        self._scripts = tuple(scripts)
        self._folder = artifact_folder
        self._clock = clock or SystemClock()
        artifact_folder.mkdir(parents=True, exist_ok=True)
        ports = [probe.guest_port for probe in probes if probe.guest_port is not None]
        spec = replace(spec, forwarded_ports=(*spec.forwarded_ports, *ports))
        self.machine = Machine(spec, artifact_folder, clock=self._clock, plug=plug)
        self._registered_s = self._power_on_s = 0.0
        self._results: list[ProbeResult] = []
        self._script_results: list[ScriptResult] = []

    def __enter__(self) -> GuestBoot:
        """Raises: SandboxError, ExternalProgramError."""
        self.machine.__enter__()
        self._registered_s = self.elapsed_s()
        try:
            if not self.machine.runs():
                raise SandboxError("QEMU has the machine but does not run it")
        except BaseException:
            self.machine.close()
            raise
        self._power_on_s = self.elapsed_s()
        return self

    def __exit__(self, *_: object) -> None:
        self.machine.close()

    @property
    def ready(self) -> bool:
        wanted = [result for result in self._results if result.reason is None]
        return bool(wanted) and all(result.ok for result in wanted)

    def get_ready(self, deadline_s: float, cancel: CancelToken) -> bool:
        """Attempt the probes until all have passed, or `deadline_s` after the start.

        Raises: CancelledError, SandboxError.
        """
        with self._guarded(deadline_s - self.elapsed_s()):
            self._results = self._run_probes(deadline_s, cancel)
        return self.ready

    def run_scripts(self, cancel: CancelToken, timeout_s: float = SCRIPT_TIMEOUT_S) -> bool:
        """One after the other, each up to `timeout_s`; the first that fails is the last."""
        with self._guarded(timeout_s * len(self._scripts)):
            for script in self._scripts:
                self._script_results.append(self._run_script(script, cancel, timeout_s))
                if not self._script_results[-1].ok:
                    break
        return all(result.ok for result in self._script_results)

    def finish(self, power_off_timeout_s: float = POWER_OFF_TIMEOUT_S) -> BootReport:
        """Take the evidence, then ask a guest that is ready to shut down and kill any other."""
        machine = self.machine
        began_s = self.elapsed_s()
        with self._guarded(0):
            screenshot_path = self._screenshot(self._folder / "screen.png")
            screen_lines = self._screen_lines()
        taken_s = self.elapsed_s()
        power_off = machine.power_off(power_off_timeout_s) if self.ready else _kill(machine)
        first_byte_at_s = machine.console.first_byte_at_s
        passed_s = [result.seconds for result in self._results if result.seconds is not None]
        return BootReport(
            accelerator=machine.acceleration.accelerator,
            accelerator_reason=machine.acceleration.reason,
            registered_s=self._registered_s,
            power_on_s=self._power_on_s,
            first_serial_byte_s=first_byte_at_s and first_byte_at_s - machine.started_at_s,
            ready_s=max(passed_s) if self.ready else None,
            probes=tuple(self._results),
            scripts=tuple(self._script_results),
            screenshot_path=screenshot_path,
            serial_log_path=machine.serial_log_path,
            screen_lines=tuple(screen_lines),
            console_lines=tuple(machine.console.lines),
            evidence_seconds=taken_s - began_s,
            power_off=power_off,
            power_off_seconds=self.elapsed_s() - taken_s,
        )

    def elapsed_s(self) -> float:
        """Since the machine was started."""
        return self._clock.monotonic_s() - self.machine.started_at_s

    @contextmanager
    def _guarded(self, seconds: float) -> Iterator[None]:
        """Kill the machine when the block takes longer than that and a margin."""
        guard = threading.Timer(max(seconds, 0) + _GUARD_MARGIN_S, self.machine.kill)
        guard.start()
        try:
            yield
        finally:
            guard.cancel()
            guard.join()

    def _run_probes(self, deadline_s: float, cancel: CancelToken) -> list[ProbeResult]:
        """Attempt what has not passed yet, in turn; the result has the order of the probes."""
        results: dict[int, ProbeResult] = {}
        pending = dict(enumerate(self._probes))
        for number, probe in list(pending.items()):
            if isinstance(probe, PingProbe):
                results[number] = _not_tried(probe)
                del pending[number]
        while pending:
            last_round = not self.machine.running or self.elapsed_s() >= deadline_s
            for number, probe in list(pending.items()):
                cancel.check()
                attempt = self._attempt(probe)
                results[number] = ProbeResult(
                    probe=probe.text,
                    ok=attempt.ok,
                    seconds=self.elapsed_s() if attempt.ok else None,
                    detail=attempt.detail,
                    over_network=probe.guest_port is not None,
                )
                if attempt.ok:
                    del pending[number]
            if last_round:
                break
            self.machine.wait(_POLL_S)
        return [results[number] for number in range(len(self._probes))]

    def _attempt(self, probe: Probe) -> Attempt:
        try:
            return probe.attempt(self.machine)
        except SandboxError:
            if self.machine.running:
                raise
            return Attempt(False, "the machine has ended")

    def _run_script(
        self, script: SerialScript, cancel: CancelToken, timeout_s: float
    ) -> ScriptResult:
        began_s = self.elapsed_s()
        try:
            matched = script.run(self.machine, timeout_s, cancel, self._clock)
        except SandboxError:
            if self.machine.running:
                raise
            matched = None
        return ScriptResult(
            script=script.text,
            ok=matched is not None,
            seconds=self.elapsed_s() - began_s,
            detail="no line matched" if matched is None else matched,
        )

    def _screenshot(self, path: Path) -> Path | None:
        path.unlink(missing_ok=True)
        try:
            self.machine.screenshot(path)
        except SandboxError:
            if self.machine.running:
                raise
            return None
        return path

    def _screen_lines(self) -> list[str]:
        try:
            return self.machine.screen_lines()
        except SandboxError:
            if self.machine.running:
                raise
            return []


def boot(
    spec: MachineSpec,
    probes: Sequence[Probe],
    deadline_s: float,
    cancel: CancelToken,
    *,
    artifact_folder: Path,
    scripts: Sequence[SerialScript] = (),
    power_off_timeout_s: float = POWER_OFF_TIMEOUT_S,
    clock: Clock | None = None,
) -> BootReport:
    """Run until every probe has passed or `deadline_s` is over; a guest that fails is a report.

    Writes `serial.log` and `screen.png` into `artifact_folder`. A guest that passed is asked to
    shut down; one that did not is killed.

    Raises:
        CancelledError: `cancel` was set; the machine was killed.
        SandboxError, ExternalProgramError: QEMU itself failed.
    """
    with GuestBoot(
        spec, probes, artifact_folder=artifact_folder, scripts=scripts, clock=clock
    ) as guest:
        if guest.get_ready(deadline_s, cancel):
            guest.run_scripts(cancel)
        return guest.finish(power_off_timeout_s)


def _not_tried(probe: Probe) -> ProbeResult:
    return ProbeResult(
        probe=probe.text,
        ok=False,
        seconds=None,
        detail=PING_IMPOSSIBLE.text,
        reason=PING_IMPOSSIBLE,
        over_network=True,
    )


def _kill(machine: Machine) -> PowerOff:
    machine.kill()
    return PowerOff.KILLED
