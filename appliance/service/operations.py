"""Operations: restores and steps of recovery sessions that somebody asked for, as runs in the
background.

    begin -> one thread: run lock -> record in the catalog -> the work -> how it ended

Each is a run for one VM (`catalog/runs.py`) with a kind of its own; while it goes on it has live
progress and can be cancelled. Whatever the work raises becomes its end. A stop of the daemon
cancels them and waits; what was killed is closed as interrupted at the next start, and recovery
sessions go on from where they were.

Thread model: any thread; one thread per operation, joined by `stop`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from appliance.base.errors import ApplianceError, CancelledError
from appliance.base.ids import RunId, new_run_id
from appliance.base.log import EventLog
from appliance.base.reasons import Reason
from appliance.catalog.catalog import Catalog
from appliance.catalog.errors import CatalogError, RunNotFoundError
from appliance.catalog.runs import RunOutcome, RunRecord
from appliance.jobs.engine import judged
from appliance.jobs.live_run import CancelCause, LiveRun, LiveSnapshot
from appliance.jobs.vm_backup import UnexpectedError
from appliance.service.job_service import RunEndedError

log = EventLog(__name__)

_MOST = 16


class TooManyOperationsError(CatalogError):
    """So many restores and recoveries go on that another one must wait; begin it later."""

    code = "operation.too-many"
    retryable = True


class OperationKind(StrEnum):
    """As `kind` of the run says it."""

    RESTORE = "restore"
    ROLL_BACK = "roll-back"
    INSTANT_START = "instant-start"
    INSTANT_FINALISE = "instant-finalise"
    INSTANT_DISCARD = "instant-discard"


KINDS = frozenset(OperationKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationOrder:
    kind: OperationKind
    vm: str  # as its recovery points are called
    host: str | None
    facts: dict[str, Any] = field(default_factory=dict)  # of the result, however it ends


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationEnd:
    result: dict[str, Any]
    reasons: tuple[Reason, ...] = ()


Work = Callable[[LiveRun], OperationEnd]


class Operations:
    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._lock = threading.Lock()
        self._active: dict[RunId, tuple[LiveRun, threading.Thread, OperationOrder]] = {}
        self._stopping = False

    def begin(self, order: OperationOrder, work: Work) -> RunId:
        """Begin it and return at once. Raises: TooManyOperationsError, StorageError."""
        run_id = new_run_id(self._catalog.clock.now())
        live = LiveRun(run_id, self._catalog.clock)
        begun = threading.Event()
        failures: list[ApplianceError] = []

        def run() -> None:
            try:
                with self._catalog.run_locks.hold(run_id):
                    self._catalog.runs.begin(run_id, kind=order.kind, vm=order.vm, host=order.host)
                    begun.set()
                    self._run(order, work, live)
            except ApplianceError as error:  # of the catalog
                log.error("operation could not be recorded", run=run_id, error=error)
                failures.append(error)
            finally:
                with self._lock:
                    del self._active[run_id]
                begun.set()

        thread = threading.Thread(target=run, name=f"operation-{run_id}")
        with self._lock:
            if self._stopping or len(self._active) >= _MOST:
                raise TooManyOperationsError(f"{len(self._active)} operations go on")
            self._active[run_id] = (live, thread, order)
            thread.start()
        begun.wait()
        if failures:
            raise failures[0]
        return run_id

    def live(self, run_id: str) -> LiveSnapshot | None:
        """None: it does not go on here."""
        with self._lock:
            found = self._active.get(RunId(run_id))
        return found[0].snapshot() if found else None

    def facts(self, run_id: str) -> dict[str, Any]:
        """What is known of one that goes on, before it has a result."""
        with self._lock:
            found = self._active.get(RunId(run_id))
        return dict(found[2].facts) if found else {}

    def all_live(self) -> Sequence[LiveSnapshot]:
        with self._lock:
            found = [live for live, _, _ in self._active.values()]
        return [live.snapshot() for live in found]

    def get(self, run_id: str) -> RunRecord:
        """Raises RunNotFoundError."""
        record = self._catalog.runs.get(RunId(run_id))
        if record.kind not in KINDS:
            raise RunNotFoundError(f"run {run_id} is a {record.kind}")
        return record

    def list(self, limit: int) -> Sequence[RunRecord]:
        """The newest, oldest first."""
        return self._catalog.runs.list(kinds=sorted(KINDS), limit=limit)

    def cancel(self, run_id: str) -> None:
        """Ask it to end. Raises: RunNotFoundError, RunEndedError."""
        with self._lock:
            found = self._active.get(RunId(run_id))
        if found is None:
            self.get(run_id)
            raise RunEndedError(f"operation {run_id} does not go on")
        found[0].cancel(CancelCause.ADMINISTRATOR)

    def stop(self) -> None:
        """Cancel all and wait for them. Idempotent."""
        with self._lock:
            self._stopping = True
            threads = [thread for _, thread, _ in self._active.values()]
            for live, _, _ in self._active.values():
                live.cancel(CancelCause.SHUTDOWN)
        for thread in threads:
            thread.join()

    def _run(self, order: OperationOrder, work: Work, live: LiveRun) -> None:
        here = log.bind(run=live.run_id, kind=order.kind, vm=order.vm)
        here.info("operation begins")
        error: ApplianceError | None = None
        try:
            end = work(live)
            outcome = judged(end.reasons)
            result = end.result | {"reasons": [reason.as_json() for reason in end.reasons]}
        except ApplianceError as failure:
            error, result = failure, _told(failure)
            cancelled = isinstance(failure, CancelledError)
            outcome = RunOutcome.CANCELLED if cancelled else RunOutcome.FAILED
        except Exception as defect:
            here.exception("operation ended by a defect")
            error = UnexpectedError(f"{type(defect).__name__}: {defect}")
            outcome, result = RunOutcome.FAILED, _told(error)
        code = error.code if error else None
        here.info("operation ended", outcome=outcome, error_code=code or "-")
        self._catalog.runs.end(live.run_id, outcome, error_code=code, result=order.facts | result)


def _told(error: ApplianceError) -> dict[str, Any]:
    notes = getattr(error, "__notes__", [])
    return {
        "error": str(error),
        "next_step": " ".join((type(error).__doc__ or "").split()),
        "notes": [str(note) for note in notes],
    }
