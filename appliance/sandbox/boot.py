"""Boot a machine, wait for its probes, take the evidence, switch it off.

The one entry point for verification: whatever happens inside (a hung guest, a guest that answers
by drips, a cancelled run, an exception), no QEMU is left when `boot` returns. A guard thread kills
the machine when a probe is still stuck well past the deadline.
Thread model: synchronous; several boots may run at once on different threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.sandbox.accelerator import Accelerator
from appliance.sandbox.errors import SandboxError
from appliance.sandbox.machine import Machine, PowerOff
from appliance.sandbox.probes import Attempt, Probe
from appliance.sandbox.spec import MachineSpec

POWER_OFF_TIMEOUT_S = 30.0
_POLL_S = 0.1
_GUARD_MARGIN_S = 20.0  # time for a last screenshot of a guest that missed the deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    probe: str  # as written on the command line
    ok: bool
    seconds: float | None  # from the start of the machine until it passed
    detail: str  # may quote the guest


@dataclass(frozen=True, slots=True, kw_only=True)
class BootReport:
    """Times are seconds since QEMU was started; None: it did not come to that."""

    accelerator: Accelerator
    accelerator_reason: Reason
    first_serial_byte_s: float | None
    ready_s: float | None  # every probe had passed
    probes: tuple[ProbeResult, ...]
    screenshot_path: Path | None
    serial_log_path: Path
    power_off: PowerOff

    @property
    def ok(self) -> bool:
        return self.ready_s is not None


def boot(
    spec: MachineSpec,
    probes: Sequence[Probe],
    deadline_s: float,
    cancel: CancelToken,
    *,
    artifact_folder: Path,
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
    if not probes:
        raise UsageError("a boot needs at least one probe to know when the guest is ready")
    ports = [probe.guest_port for probe in probes if probe.guest_port is not None]
    spec = replace(spec, forwarded_ports=(*spec.forwarded_ports, *ports))
    artifact_folder.mkdir(parents=True, exist_ok=True)
    clock = clock or SystemClock()
    with Machine(spec, artifact_folder, clock=clock) as machine:
        guard = threading.Timer(deadline_s + _GUARD_MARGIN_S, machine.kill)
        guard.start()
        try:
            results = _run_probes(machine, probes, deadline_s, cancel, clock)
            screenshot_path = _screenshot(machine, artifact_folder / "screen.png")
        finally:
            guard.cancel()
            guard.join()
        passed_s = [result.seconds for result in results if result.seconds is not None]
        ready = len(passed_s) == len(results)
        power_off = machine.power_off(power_off_timeout_s) if ready else _kill(machine)
        first_byte_at_s = machine.console.first_byte_at_s
    return BootReport(
        accelerator=machine.acceleration.accelerator,
        accelerator_reason=machine.acceleration.reason,
        first_serial_byte_s=first_byte_at_s and first_byte_at_s - machine.started_at_s,
        ready_s=max(passed_s) if ready else None,
        probes=tuple(results),
        screenshot_path=screenshot_path,
        serial_log_path=machine.serial_log_path,
        power_off=power_off,
    )


def _run_probes(
    machine: Machine,
    probes: Sequence[Probe],
    deadline_s: float,
    cancel: CancelToken,
    clock: Clock,
) -> list[ProbeResult]:
    """Attempt what has not passed yet, in turn; the result has the order of `probes`."""
    results: dict[int, ProbeResult] = {}
    pending = dict(enumerate(probes))
    while pending:
        elapsed_s = clock.monotonic_s() - machine.started_at_s
        last_round = not machine.running or elapsed_s >= deadline_s
        for number, probe in list(pending.items()):
            cancel.check()
            attempt = _attempt(machine, probe)
            seconds = clock.monotonic_s() - machine.started_at_s
            results[number] = ProbeResult(
                probe=probe.text,
                ok=attempt.ok,
                seconds=seconds if attempt.ok else None,
                detail=attempt.detail,
            )
            if attempt.ok:
                del pending[number]
        if last_round:
            break
        machine.wait(_POLL_S)
    return [results[number] for number in range(len(probes))]


def _attempt(machine: Machine, probe: Probe) -> Attempt:
    try:
        return probe.attempt(machine)
    except SandboxError:
        if machine.running:
            raise
        return Attempt(False, "the machine has ended")


def _screenshot(machine: Machine, path: Path) -> Path | None:
    path.unlink(missing_ok=True)
    try:
        machine.screenshot(path)
    except SandboxError:
        if machine.running:
            raise
        return None
    return path


def _kill(machine: Machine) -> PowerOff:
    machine.kill()
    return PowerOff.KILLED
