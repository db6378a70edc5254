"""Runs of jobs as threads: begun, watched, cancelled, and each ended in exactly one way.

    scheduler -> `start` -> one thread: run lock -> script before -> runner of the kind ->
    script after -> the end, in the catalog -> listeners

A runner (`jobs/runners/`) does the work of one kind and returns a report, or raises. This is the
run boundary: whatever it raises becomes the end of the run. Success, warning and failed are the
runner's to say; cancelled is said when an administrator cancelled; a run that the daemon's stop
ended is failed, `run.interrupted`, and the scheduler repeats it at the next start.

A kill leaves the run open in the catalog with nobody holding its lock; `close_interrupted` ends it.

Thread model: `start`, `cancel`, `live` from any thread; one thread per run, joined by `stop`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.ids import RunId
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.catalog.errors import JobRunningError, RunInterruptedError
from appliance.catalog.job import RunKind
from appliance.catalog.job_runs import JobRun, JobRuns, RunCause, RunEnd
from appliance.catalog.jobs import SavedJob
from appliance.catalog.run_locks import RunLocks
from appliance.catalog.runs import RunOutcome
from appliance.jobs.live_run import CancelCause, LiveRun, LiveSnapshot
from appliance.jobs.run_scripts import ScriptError, ScriptResult, run_facts, run_script
from appliance.jobs.vm_backup import UnexpectedError

log = EventLog(__name__)

RunListener = Callable[[JobRun], None]
"""Hears of every run that has ended, on the run's thread; what it raises is logged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrder:
    """One run that is to be done, with job and policy as they are now."""

    run: JobRun
    saved: SavedJob


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a runner's work ended, short of an exception."""

    outcome: RunOutcome
    reasons: tuple[Reason, ...] = ()
    error: ApplianceError | None = None  # why it failed
    result: dict[str, Any] = field(default_factory=dict)
    follow_up: RunKind | None = None  # to be done next, for the same job


class Runner(Protocol):
    def run(self, order: RunOrder, live: LiveRun) -> RunReport:
        """Do the work; heed `live.context.cancel`. Raises ApplianceError: the run failed."""
        ...


def worst(outcomes: Iterable[RunOutcome]) -> RunOutcome:
    """What parts make together: failed over cancelled over warning over success."""
    order = (RunOutcome.SUCCESS, RunOutcome.WARNING, RunOutcome.CANCELLED, RunOutcome.FAILED)
    return max(outcomes, key=order.index, default=RunOutcome.SUCCESS)


def judged(reasons: Sequence[Reason]) -> RunOutcome:
    """Success, or warning when a reason is one."""
    warned = any(reason.warning for reason in reasons)
    return RunOutcome.WARNING if warned else RunOutcome.SUCCESS


class Engine:
    def __init__(
        self,
        job_runs: JobRuns,
        run_locks: RunLocks,
        runners: Mapping[RunKind, Runner],
        clock: Clock,
        listeners: Sequence[RunListener] = (),
    ) -> None:
        self._job_runs = job_runs
        self._run_locks = run_locks
        self._runners = dict(runners)
        self._clock = clock
        self._listeners = list(listeners)
        self._changed = threading.Condition()
        self._active: dict[RunId, tuple[RunOrder, LiveRun, threading.Thread]] = {}
        self._stopping = False

    def add_listener(self, listener: RunListener) -> None:
        """Before the first run is started."""
        self._listeners.append(listener)

    def start(self, order: RunOrder) -> bool:
        """Begin a waiting run on a thread of its own; False: the engine stops."""
        live = LiveRun(order.run.run_id, self._clock)
        thread = threading.Thread(
            target=self._thread, args=(order, live), name=f"run-{order.run.run_id}"
        )
        with self._changed:
            if self._stopping:
                return False
            self._active[order.run.run_id] = (order, live, thread)
            thread.start()
        return True

    def active(self, kind: RunKind | None = None) -> list[RunOrder]:
        with self._changed:
            orders = [order for order, _, _ in self._active.values()]
        return [order for order in orders if kind in (None, order.run.kind)]

    def live(self, run_id: str) -> LiveSnapshot | None:
        """What the run is doing now; None: it does not go on here."""
        with self._changed:
            found = self._active.get(RunId(run_id))
        return found[1].snapshot() if found else None

    def cancel(self, run_id: str) -> bool:
        """Ask a run to end; False: it does not go on here. Returns at once."""
        with self._changed:
            found = self._active.get(RunId(run_id))
        if found is None:
            return False
        found[1].cancel(CancelCause.ADMINISTRATOR)
        return True

    def wait_idle(self, timeout_s: float | None = None) -> bool:
        """Wait until no run goes on."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._active, timeout_s)

    def stop(self) -> None:
        """Interrupt all runs, wait for them, start no more. Idempotent."""
        with self._changed:
            self._stopping = True
            threads = [thread for _, _, thread in self._active.values()]
            for _, live, _ in self._active.values():
                live.cancel(CancelCause.SHUTDOWN)
        for thread in threads:
            thread.join()

    # One run, on its thread

    def _thread(self, order: RunOrder, live: LiveRun) -> None:
        ended: JobRun | None = None
        try:
            with self._run_locks.hold(order.run.run_id):
                ended = self._run(order, live)
        except ApplianceError as error:  # of the catalog; the run is closed as interrupted
            log.error("run could not be recorded", run=order.run.run_id, error=error)
        finally:
            with self._changed:
                del self._active[order.run.run_id]
                self._changed.notify_all()
        if ended is not None:
            self._tell(ended)

    def _run(self, order: RunOrder, live: LiveRun) -> JobRun | None:
        run = order.run
        if not self._job_runs.begin(run.run_id):
            return None  # cancelled while it waited
        here = log.bind(run=run.run_id, job=run.job, kind=run.kind)
        here.info("run begins", cause=run.cause, attempt=run.attempt)
        end, follow_up = self._end_of(order, live)
        self._job_runs.end(run.run_id, end)
        here.info("run ended", outcome=end.outcome, error_code=end.error_code or "-")
        if follow_up is not None:
            # one that waits sees this run's result too; after one that goes on, the next run's will
            with suppress(JobRunningError):
                self._job_runs.add(run.job, follow_up, RunCause.FOLLOW_UP)
        return self._job_runs.get(run.run_id)

    def _end_of(self, order: RunOrder, live: LiveRun) -> tuple[RunEnd, RunKind | None]:
        """Scripts and runner; everything that goes wrong becomes the end."""
        policy = order.saved.policy
        scripts: dict[str, Any] = {}
        follow_up: RunKind | None = None
        with_scripts = order.run.cause is not RunCause.FOLLOW_UP
        try:
            if policy.before is not None and with_scripts:
                live.begins("script before the run")
                result = run_script(policy.before, run_facts(order.run), live.context.cancel)
                scripts["before"] = result.as_json()
                if not result.succeeded:
                    raise ScriptError(f"{policy.before.argv[0]}: {_how(result)}")
            report = self._report(order, live)
            follow_up = report.follow_up
            end = _end_of_report(report)
        except CancelledError as error:
            end = _cancelled(error)
        except ApplianceError as error:
            end = _failed(error)
        stopping = live.cancel_cause is CancelCause.SHUTDOWN  # the run is repeated, scripts and all
        if policy.after is not None and with_scripts and not stopping:
            live.begins("script after the run")
            end = self._after(order, live, end, scripts)
        if live.cancel_cause is CancelCause.SHUTDOWN and end.outcome is RunOutcome.CANCELLED:
            end = replace(
                end,
                outcome=RunOutcome.FAILED,
                error_code=RunInterruptedError.code,
                error="the daemon was stopped",
            )
        if scripts:
            end = replace(end, result=end.result | {"scripts": scripts})
        return end, follow_up

    def _report(self, order: RunOrder, live: LiveRun) -> RunReport:
        runner = self._runners.get(order.run.kind)
        if runner is None:
            raise UnexpectedError(f"nothing here does runs of kind {order.run.kind}")
        try:
            return runner.run(order, live)
        except ApplianceError:
            raise
        except Exception as error:
            log.exception("run ended by a defect", run=order.run.run_id)
            raise UnexpectedError(f"{type(error).__name__}: {error}") from error

    def _after(
        self, order: RunOrder, live: LiveRun, end: RunEnd, scripts: dict[str, Any]
    ) -> RunEnd:
        script = order.saved.policy.after
        assert script is not None
        cancelled = live.cancel_cause is not None
        token = live.shutdown if cancelled else live.context.cancel
        try:
            result = run_script(script, run_facts(order.run, end), token)
            scripts["after"] = result.as_json()
            if result.succeeded:
                return end
            words = _how(result)
        except CancelledError:
            words = "it was ended with the run"
        except ScriptError as error:
            words = str(error)
        reason = Reason(
            "script.after-failed",
            f"the script after the run: {words}",
            "see its output in the result of the run",
        )
        return replace(
            end, outcome=worst((end.outcome, RunOutcome.WARNING)), reasons=(*end.reasons, reason)
        )

    def _tell(self, run: JobRun) -> None:
        for listener in self._listeners:
            try:
                listener(run)
            except Exception:  # whoever listens must not end a run
                log.exception("a listener failed", run=run.run_id)


def _how(result: ScriptResult) -> str:
    if result.exit_code is None:
        return f"killed at its time limit after {result.seconds:.0f} s"
    return f"exit code {result.exit_code}"


def _end_of_report(report: RunReport) -> RunEnd:
    error = report.error
    return RunEnd(
        outcome=report.outcome,
        reasons=tuple(dict.fromkeys(report.reasons)),
        error_code=error.code if error else None,
        error=str(error) if error else None,
        result=report.result,
    )


def _cancelled(error: CancelledError) -> RunEnd:
    return RunEnd(outcome=RunOutcome.CANCELLED, error_code=error.code, error=str(error))


def _failed(error: ApplianceError) -> RunEnd:
    return RunEnd(outcome=RunOutcome.FAILED, error_code=error.code, error=str(error))
