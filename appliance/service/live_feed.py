"""What happens, as it happens: events for those who watch, and the throughput of each run so far.

    runs, operations, sessions -> looked at once a second -> what differs -> listeners

A listener hears of a run that begins or ends, of progress, of a recovery session that comes further
and of an operation that begins or ends. Nobody has to keep up: a listener must return at once, and
who has missed events looks at the whole again. Nothing here is durable.

Thread model: `start` begins one thread, `stop` joins it; the rest from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from appliance.base.clock import Clock
from appliance.base.log import EventLog
from appliance.base.periodic_task import PeriodicTask
from appliance.jobs.live_run import LiveSnapshot
from appliance.service.job_service import JobService
from appliance.service.operations import Operations
from appliance.service.recovery_server import ServedSession

log = EventLog(__name__)

EVERY_S = 1.0
_RUNS_WATCHED = 50
_SAMPLES_MOST = 600
_HISTORIES_KEPT = 64


class EventKind(StrEnum):
    RUN = "run"  # of a job: it waits, goes on, has ended
    PROGRESS = "progress"  # of a run or an operation
    OPERATION = "operation"
    SESSION = "session"
    JOB = "job"  # saved, switched or removed
    RESYNC = "resync"  # to who begins to listen, or has missed some: look at the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    kind: EventKind
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ThroughputSample:
    at_s: float  # since the first one
    bytes_per_s: float


@dataclass(slots=True)
class _History:
    began_s: float
    last_s: float
    last_bytes: int
    samples: list[ThroughputSample] = field(default_factory=list)


Listener = Callable[[Event], None]
_State = dict[tuple[EventKind, str], dict[str, Any]]


class LiveFeed:
    def __init__(
        self,
        jobs: JobService,
        operations: Operations,
        sessions: Callable[[], Sequence[ServedSession]],
        clock: Clock,
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._jobs = jobs
        self._operations = operations
        self._sessions = sessions
        self._clock = clock
        self._every_s = every_s
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._known: _State = {}
        self._histories: dict[str, _History] = {}
        self._fresh: list[Listener] = []  # since the last look
        self._watched = False
        self._task = PeriodicTask("live-feed", self.look, every_s=every_s)

    def start(self) -> None:
        self._task.start()

    def stop(self) -> None:
        """Idempotent."""
        self._task.stop()

    def wake(self) -> None:
        """Something has happened: look now."""
        self._task.wake()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Tell the listener of events from now on; call what is returned to end that."""
        with self._lock:
            self._listeners.append(listener)
            self._fresh.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = [each for each in self._listeners if each is not listener]
                self._fresh = [each for each in self._fresh if each is not listener]

        return unsubscribe

    def throughput(self, run_id: str) -> tuple[ThroughputSample, ...]:
        """Of a run that goes on or ended lately, from its beginning, thinned out."""
        with self._lock:
            found = self._histories.get(run_id)
            return tuple(found.samples) if found else ()

    def look(self) -> None:
        """Compare everything with the last look, and tell what differs."""
        live = [*self._jobs.live(), *self._operations.all_live()]
        operations = {snapshot.run_id for snapshot in self._operations.all_live()}
        now: _State = {}
        for snapshot in live:
            self._sample(snapshot)
            now[EventKind.PROGRESS, snapshot.run_id] = snapshot.as_json()
        for run_id in operations:
            now[EventKind.OPERATION, run_id] = {"run_id": run_id, "state": "running"}
        with self._lock:
            fresh, self._fresh = self._fresh, []
            listeners = [each for each in self._listeners if each not in fresh]
        if listeners or fresh:
            now |= self._runs() | self._recoveries() | self._saved()
        known, self._known = self._known, now
        was_watched, self._watched = self._watched, bool(listeners or fresh)
        if was_watched:
            _tell(listeners, _differences(known, now))
        _tell(fresh, [Event(kind=EventKind.RESYNC, fields={})])

    def _runs(self) -> _State:
        return {
            (EventKind.RUN, run.run_id): {
                "run_id": run.run_id,
                "job": run.job,
                "kind": run.kind,
                "state": run.state,
                "outcome": run.outcome,
            }
            for run in self._jobs.runs(limit=_RUNS_WATCHED)
        }

    def _recoveries(self) -> _State:
        return {
            (EventKind.SESSION, each.record.session_id): {
                "session_id": each.record.session_id,
                "vm": each.record.vm,
                "phase": each.record.phase,
                "step": each.record.steps[-1].name if each.record.steps else None,
                "served": each.served,
                "stuck": each.record.stuck,
            }
            for each in self._sessions()
        }

    def _saved(self) -> _State:
        return {
            (EventKind.JOB, saved.name): {
                "job": saved.name,
                "enabled": saved.job.enabled,
                "since": saved.since.isoformat(),
            }
            for saved in self._jobs.saved()
        }

    def _sample(self, snapshot: LiveSnapshot) -> None:
        now_s, done = self._clock.monotonic_s(), snapshot.whole.done_bytes
        with self._lock:
            found = self._histories.get(snapshot.run_id)
            if found is None:
                while len(self._histories) >= _HISTORIES_KEPT:
                    del self._histories[next(iter(self._histories))]
                found = _History(began_s=now_s, last_s=now_s, last_bytes=done)
                self._histories[snapshot.run_id] = found
                return
            if now_s - found.last_s < self._every_s / 2:
                return
            rate = max(done - found.last_bytes, 0) / (now_s - found.last_s)
            found.samples.append(ThroughputSample(at_s=now_s - found.began_s, bytes_per_s=rate))
            found.last_s, found.last_bytes = now_s, done
            if len(found.samples) > _SAMPLES_MOST:
                found.samples = _thinned(found.samples)


def _differences(known: _State, now: _State) -> list[Event]:
    found = [
        Event(kind=key[0], fields=fields) for key, fields in now.items() if known.get(key) != fields
    ]
    return found + [
        Event(kind=kind, fields=known[kind, name] | {"state": "ended"})
        for kind, name in known.keys() - now.keys()
        if kind in (EventKind.OPERATION, EventKind.SESSION, EventKind.JOB)
    ]


def _tell(listeners: Sequence[Listener], events: Sequence[Event]) -> None:
    for event in events:
        for listener in listeners:
            try:
                listener(event)
            except Exception:  # one listener must not cost the others the event
                log.exception("a listener of the live feed failed")


def _thinned(samples: Sequence[ThroughputSample]) -> list[ThroughputSample]:
    """Half as many, each the mean of two."""
    return [
        ThroughputSample(at_s=later.at_s, bytes_per_s=(first.bytes_per_s + later.bytes_per_s) / 2)
        for first, later in zip(samples[::2], samples[1::2], strict=False)
    ]
