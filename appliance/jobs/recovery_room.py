"""What the jobs of instant recovery work with, and how they take a session from step to step.

Every step is timed and written into `session.json`, with the phase that it reached; a step that
fails is written there too, and the session stays as it is until it is resumed or discarded.
Thread model: one thread per session, which holds `SessionStore.working_on`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from appliance.base.clock import Clock
from appliance.base.errors import ApplianceError
from appliance.base.log import EventLog
from appliance.blocks.device import BlockReader
from appliance.exports.datastore.session import SessionRecord, SessionStep, SessionStore
from appliance.repository.repository import Repository
from appliance.targets.recovery import TargetState

log = EventLog(__name__)

T = TypeVar("T")


class SessionServer(Protocol):
    """Who shows sessions to hosts: the daemon."""

    @property
    def address(self) -> str:
        """The one address that it is bound to; "": hosts reach it at any of this machine."""
        ...

    @property
    def iscsi_port(self) -> int:
        """Where sessions for iSCSI are shown; 0: nowhere."""
        ...

    @property
    def smb_port(self) -> int:
        """Where sessions for SMB are shown; 0: nowhere."""
        ...

    def serve(self, session_id: str) -> None: ...

    def withdraw(self, session_id: str) -> None: ...


class RecoveryJournal(Protocol):
    """The catalog's journal, as far as recovery sessions go."""

    def begin(self, session_id: str, host: str, state: TargetState) -> None:
        """Write down what will be made on the host; durable on return. Idempotent."""
        ...

    def made(self, session_id: str, vm_key: str) -> None:
        """The VM came to be."""
        ...

    def end(self, session_id: str) -> None:
        """All of it is gone, or is a VM like any other now. Idempotent."""
        ...


StepEnds = Callable[[str, float], None]
"""Told of each step: its name, and its seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryRoom:
    repository: Repository
    store: SessionStore
    folder: Path  # of all sessions
    server: SessionServer
    journal: RecoveryJournal
    clock: Clock
    step_ends: StepEnds = lambda name, seconds: None

    def open_image(self, point_id: str, disk_number: int) -> BlockReader:
        return self.repository.open_image(point_id, disk_number)


class SessionSteps:
    """One session on its way."""

    def __init__(self, room: RecoveryRoom, record: SessionRecord) -> None:
        self.record = record
        self._room = room
        self._log = log.bind(session=record.session_id, vm=record.vm)

    def run(
        self,
        name: str,
        action: Callable[[], T],
        changes: Callable[[T], dict[str, Any]] = lambda result: {},
    ) -> T:
        """Do a step; what it reached is in `session.json` when this returns.

        Raises: what `action` raises; `session.json` says it then.
        """
        clock = self._room.clock
        started_s = clock.monotonic_s()
        try:
            result = action()
        except ApplianceError as error:
            self._log.error("step failed", step=name, code=error.code, error=error)
            self.save(stuck=f"{name}: [{error.code}] {error}"[:4096])
            raise
        seconds = clock.monotonic_s() - started_s
        step = SessionStep(name=name, seconds=max(seconds, 0.0), ended_at=clock.now())
        self.save(steps=(*self.record.steps, step), stuck=None, **changes(result))
        self._log.info("step", step=name, seconds=round(seconds, 3))
        self._room.step_ends(name, seconds)
        return result

    def note(self, name: str, seconds: float) -> None:
        """A step that was done before there was a session to say so."""
        step = SessionStep(name=name, seconds=max(seconds, 0.0), ended_at=self._room.clock.now())
        self.save(steps=(*self.record.steps, step))

    def save(self, **changes: Any) -> None:
        """Durable on return."""
        self.record = self._room.store.update(self.record, **changes)
