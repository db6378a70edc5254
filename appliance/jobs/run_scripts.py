"""The scripts before and after a run: programs of the administrator, on the appliance.

A script gets its arguments as they stand in the policy and facts of the run as environment
variables, nothing else of ours: no name that a guest or hypervisor chose, no secret, no shell. It
has no input; of what it prints the last 16 KiB are kept. At its time limit, and when the run is
cancelled, it and what it started are killed.

    HOLDFAST_RUN_ID, HOLDFAST_JOB, HOLDFAST_KIND, HOLDFAST_CAUSE, HOLDFAST_ATTEMPT
    HOLDFAST_OUTCOME, HOLDFAST_ERROR_CODE        of a script after the run

Thread model: `run_script` blocks; any thread.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import ApplianceError
from appliance.base.run_context import CancelToken
from appliance.catalog.job_runs import JobRun, RunEnd
from appliance.catalog.policy import Script

OUTPUT_LIMIT_BYTES = 16 << 10
_LOOK_S = 0.1
_READ_BYTES = 1 << 16


class ScriptError(ApplianceError):
    """The script before the run failed, so nothing was done; its last output stands in the run."""

    code = "run.script-failed"

    def __init__(self, message: str, result: ScriptResult | None = None) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptResult:
    exit_code: int | None  # None: it was killed at its time limit
    seconds: float
    output: str  # the last of what it printed, both streams

    @property
    def succeeded(self) -> bool:
        return self.exit_code == 0

    def as_json(self) -> dict[str, Any]:
        return {
            "exit_code": self.exit_code,
            "seconds": round(self.seconds, 3),
            "output": self.output,
        }


def run_facts(run: JobRun, end: RunEnd | None = None) -> dict[str, str]:
    """The environment of a script."""
    facts = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
        "HOLDFAST_RUN_ID": run.run_id,
        "HOLDFAST_JOB": run.job,
        "HOLDFAST_KIND": run.kind,
        "HOLDFAST_CAUSE": run.cause,
        "HOLDFAST_ATTEMPT": str(run.attempt),
    }
    if end is not None:
        facts |= {"HOLDFAST_OUTCOME": end.outcome, "HOLDFAST_ERROR_CODE": end.error_code or ""}
    return facts


def run_script(
    script: Script, facts: Mapping[str, str], cancel: CancelToken, *, clock: Clock | None = None
) -> ScriptResult:
    """Run it to its end. Raises: ScriptError: it cannot be started; CancelledError."""
    clock = clock or SystemClock()
    started_s = clock.monotonic_s()
    try:
        process = subprocess.Popen(
            script.argv,
            env=dict(facts),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ScriptError(f"{script.argv[0]}: {os.strerror(error.errno or 0)}") from error
    output = bytearray()
    killed = False
    try:
        assert process.stdout is not None
        os.set_blocking(process.stdout.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while process.poll() is None and not killed:
                cancel.check()
                if not selector.get_map():  # it has closed its output and goes on
                    cancel.wait(_LOOK_S)
                elif selector.select(_LOOK_S) and not _take(process.stdout.fileno(), output):
                    selector.unregister(process.stdout)
                killed = clock.monotonic_s() - started_s >= script.timeout_s
        if not killed:
            while _take(process.stdout.fileno(), output):
                pass
    finally:
        _end(process)
    return ScriptResult(
        exit_code=None if killed else process.returncode,
        seconds=clock.monotonic_s() - started_s,
        output=bytes(output).decode(errors="replace"),
    )


def _take(fd: int, output: bytearray) -> bool:
    """Take what is there; False: nothing more for now, or ever."""
    try:
        data = os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return False
    output += data
    del output[: max(0, len(output) - OUTPUT_LIMIT_BYTES)]
    return bool(data)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill it, if it goes on, with its process group, and reap it."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
