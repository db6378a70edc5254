"""Making our snapshot of a VM, and removing it: never one that is not ours, never all of them.

Data path: a backup freezes the VM here, reads the frozen files through a transport, closes every
reader, and removes the snapshot here. The snapshot's description says whose it is (`marker.py`),
and that marker is what every removal checks first.

A reply can be lost after the server has understood the request. So nothing is repeated blindly: the
snapshot is looked for by its marker first, once no snapshot task runs on the VM any more. A failed
attempt may leave a half-made snapshot; it is removed before the next one.

Crash guarantee: a kill at any point leaves at most a snapshot with our marker, which `orphans.py`
finds. Calls block; different VMs may be worked on by different threads.

Source: vSphere API reference, CreateSnapshotEx_Task, CreateSnapshot_Task, RemoveSnapshot_Task.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from pyVmomi import vim

from vmware import running_tasks
from vmware.consolidation import Consolidation, consolidate
from vmware.errors import (
    ObjectGoneError,
    QuiesceError,
    SessionLostError,
    SnapshotError,
    TaskFailedError,
    UnreachableError,
    UnsupportedError,
    VsphereError,
)
from vmware.findings import Finding, Weight
from vmware.marker import Marker
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.quiesce import (
    Attempt,
    Consistency,
    GuestState,
    Ladder,
    Rung,
    attempts,
    judge,
    quiesce_spec,
)
from vmware.session import Session
from vmware.snapshot_tree import SnapshotEntry, list_snapshots
from vmware.tasks import wait_for_task

CREATE_DEADLINE_S = 1800.0
REMOVE_DEADLINE_S = 6 * 3600.0

_BUSY_TRIES = 6
_BUSY_PAUSE_S = 5.0
_STEPS_DOWN = (QuiesceError, SnapshotError, TaskFailedError)
_REPLY_LOST = (UnreachableError, SessionLostError)


class ForeignSnapshotError(VsphereError):
    """The snapshot does not carry this appliance's marker; it was left alone."""

    code = "vsphere.snapshot-not-ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenSnapshot:
    vm_moref: str
    moref: str
    created_at: datetime  # by the server's clock
    consistency: Consistency
    backup_manifest: str | None  # of the VSS writers: a path relative to the VM's folder
    findings: tuple[Finding, ...]


class Removal(StrEnum):
    REMOVED = "removed"
    ALREADY_GONE = "already-gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemovalOutcome:
    removal: Removal
    consolidation: Consolidation
    findings: tuple[Finding, ...]


def create_snapshot(
    session: Session,
    vm_moref: str,
    marker: Marker,
    *,
    ladder: Ladder | None = None,
    patience: Patience | None = None,
    deadline_s: float = CREATE_DEADLINE_S,
) -> TakenSnapshot:
    """Freeze the VM's disks, as well as the guest and the ladder allow.

    `deadline_s` is for one attempt. After any error, also a cancel, what an attempt left behind has
    been removed, or the message says that it could not be.

    Raises:
        QuiesceError: the guest cannot be brought to rest, and the ladder allows no less.
        SnapshotError, NoSpaceError, BusyError, PrivilegeError, DeadlineError, CancelledError,
        other VsphereErrors: no snapshot.
    """
    return _Creation(
        session, vm_moref, marker, ladder or Ladder(), patience or Patience(), deadline_s
    ).run()


def remove_snapshot(
    session: Session,
    vm_moref: str,
    snapshot_moref: str,
    *,
    appliance_id: str,
    patience: Patience | None = None,
    deadline_s: float = REMOVE_DEADLINE_S,
) -> RemovalOutcome:
    """Remove our snapshot, then see to it that its disks were really merged.

    Close every reader and detach every hot-added disk before. Idempotent: one that is gone counts
    as removed. A consolidation that does not succeed is an outcome, not an error: the VM works, and
    whoever called should raise an alarm and try again later.

    Raises:
        ForeignSnapshotError: it is not ours; nothing was done.
        VsphereError: it is still there.
    """
    patience = patience or Patience()
    removal = Removal.ALREADY_GONE
    if _find(session, vm_moref, snapshot_moref, appliance_id) is not None:
        patience.retry(
            lambda: _remove(session, vm_moref, snapshot_moref, appliance_id, patience, deadline_s),
            tries=_BUSY_TRIES,
        )
        removal = Removal.REMOVED
    outcome = consolidate(session, vm_moref, patience=patience, deadline_s=deadline_s)
    return RemovalOutcome(
        removal=removal, consolidation=outcome.consolidation, findings=outcome.findings
    )


def _find(
    session: Session, vm_moref: str, snapshot_moref: str, appliance_id: str
) -> SnapshotEntry | None:
    """Our snapshot, or None when it is gone. Raises ForeignSnapshotError."""
    for entry in list_snapshots(session, vm_moref):
        if entry.moref == snapshot_moref:
            if entry.marker is None or entry.marker.appliance_id != appliance_id:
                raise ForeignSnapshotError(f"snapshot {snapshot_moref} of {vm_moref} is not ours")
            return entry
    return None


def _remove(
    session: Session,
    vm_moref: str,
    snapshot_moref: str,
    appliance_id: str,
    patience: Patience,
    deadline_s: float,
) -> None:
    """One try; returns when the snapshot is out of the tree, whatever the reply said."""
    if _find(session, vm_moref, snapshot_moref, appliance_id) is None:
        return
    what = f"remove snapshot {snapshot_moref}"
    try:
        snapshot = session.object(vim.vm.Snapshot, snapshot_moref)
        task = session.call(what, snapshot.RemoveSnapshot_Task, False, True)
        wait_for_task(session, task, what=what, deadline_s=deadline_s, cancelled=patience.cancelled)
    except VsphereError as error:
        calm = patience.unstoppable()
        if isinstance(error, _REPLY_LOST):
            calm.pause(running_tasks.GRACE_S)
        settle(session, vm_moref, calm, deadline_s=deadline_s)
        if _find(session, vm_moref, snapshot_moref, appliance_id) is not None:
            raise


def settle(session: Session, vm_moref: str, patience: Patience, *, deadline_s: float) -> None:
    """Return once no snapshot task runs on the VM. Raises DeadlineError, VsphereError."""
    running_tasks.settle(
        session, vm_moref, running_tasks.TaskKind.SNAPSHOT, patience, deadline_s=deadline_s
    )


class _Creation:
    """The attempts for one snapshot; used once, by one thread."""

    def __init__(
        self,
        session: Session,
        vm_moref: str,
        marker: Marker,
        ladder: Ladder,
        patience: Patience,
        deadline_s: float,
    ) -> None:
        self._session = session
        self._vm_moref = vm_moref
        self._marker = marker
        self._ladder = ladder
        self._patience = patience
        self._deadline_s = deadline_s
        self._findings: list[Finding] = []
        self._unsure: VsphereError | None = None  # why a snapshot may be there that nobody saw

    def run(self) -> TakenSnapshot:
        guest = self._guest()
        tries, findings = attempts(self._ladder, guest)
        self._findings += findings
        if not tries:
            raise QuiesceError(f"{self._vm_moref}: {findings[0].text}; {findings[0].next_step}")
        *higher, last = tries
        for attempt in higher:
            try:
                return self._take(attempt, guest)
            except _STEPS_DOWN as error:
                self._findings.append(_stepped_down(attempt.rung, error))
        return self._take(last, guest)

    def _guest(self) -> GuestState:
        vm = self._session.object(vim.VirtualMachine, self._vm_moref)
        paths = (
            "runtime.powerState",
            "guest.toolsRunningStatus",
            "guest.guestFamily",
            "config.guestId",
        )
        read = fetch_one(self._session, f"look at {self._vm_moref}", vm, paths).values
        family = read.get("guest.guestFamily")
        return GuestState(
            power=str(read.get("runtime.powerState", "poweredOn")),
            tools=read.get("guest.toolsRunningStatus"),
            windows=family == "windowsGuest"
            or (not family and str(read.get("config.guestId", "")).lower().startswith("win")),
        )

    def _take(self, attempt: Attempt, guest: GuestState) -> TakenSnapshot:
        """One attempt; when it raises, nothing of it is left (or the error's notes say what is)."""
        self._patience.pause(attempt.pause_s)
        try:
            entry = self._patience.retry(
                lambda: self._made(attempt.rung, guest),
                tries=_BUSY_TRIES,
                first_pause_s=_BUSY_PAUSE_S,
            )
        except VsphereError as error:
            if self._unsure is not None:
                self._clean_up(error)
            raise
        consistency, findings = judge(
            attempt.rung, guest, quiesced=entry.quiesced, backup_manifest=entry.backup_manifest
        )
        if consistency is Consistency.CRASH and self._ladder.bottom is not Rung.CRASH:
            less = QuiesceError(f"{self._vm_moref}: {findings[0].text}; {findings[0].next_step}")
            self._clean_up(less)
            raise less
        return TakenSnapshot(
            vm_moref=self._vm_moref,
            moref=entry.moref,
            created_at=entry.created_at,
            consistency=consistency,
            backup_manifest=entry.backup_manifest,
            findings=(*self._findings, *findings),
        )

    def _made(self, rung: Rung, guest: GuestState) -> SnapshotEntry:
        """Ask for it and wait, or find the one that was made although the reply was lost."""
        what = f"create a snapshot of {self._vm_moref}"
        if self._unsure is not None:
            found = self._made_all_the_same(self._unsure)
            if found is not None:
                return found
        try:
            moref = self._ask_and_wait(rung, guest, what)
            for entry in list_snapshots(self._session, self._vm_moref):
                if entry.moref == moref:
                    return entry
            raise SnapshotError(f"{what}: {moref} is not in the tree after it was made")
        except _REPLY_LOST as error:
            self._unsure = error
            with contextlib.suppress(VsphereError):  # then the next try looks first
                found = self._made_all_the_same(error)
                if found is not None:
                    return found
            raise
        except VsphereError as error:
            self._clean_up(error)
            raise

    def _made_all_the_same(self, error: VsphereError) -> SnapshotEntry | None:
        """The snapshot whose reply was lost. Raises VsphereError: it cannot be told yet."""
        self._patience.unstoppable().pause(running_tasks.GRACE_S)
        ours = self._ours()
        self._unsure = None
        if not ours:
            return None
        self._findings.append(_reply_was_lost(error))
        return ours[0]

    def _ask_and_wait(self, rung: Rung, guest: GuestState, what: str) -> str:
        """Return the new snapshot's moref."""
        task = self._ask(rung, guest, what)
        try:
            result = wait_for_task(
                self._session,
                task,
                what=what,
                deadline_s=self._deadline_s,
                cancelled=self._patience.cancelled,
            )
        except ObjectGoneError as error:
            raise UnreachableError(f"{what}: the task vanished before it told a result") from error
        return str(result._GetMoId())

    def _ask(self, rung: Rung, guest: GuestState, what: str) -> Any:
        vm = self._session.object(vim.VirtualMachine, self._vm_moref)
        name, text = self._marker.snapshot_name, self._marker.text
        spec = quiesce_spec(self._ladder, rung, windows=guest.windows)
        if spec is not None:
            try:
                return self._session.call(what, vm.CreateSnapshotEx_Task, name, text, False, spec)
            except UnsupportedError:
                pass  # before vSphere 6.5
        return self._session.call(what, vm.CreateSnapshot_Task, name, text, False, spec is not None)

    def _ours(self) -> list[SnapshotEntry]:
        """Snapshots with exactly our marker, once no snapshot task runs any more."""
        calm = self._patience.unstoppable()
        settle(self._session, self._vm_moref, calm, deadline_s=self._deadline_s)
        entries = list_snapshots(self._session, self._vm_moref)
        return [entry for entry in entries if entry.marker == self._marker]

    def _clean_up(self, error: VsphereError) -> None:
        """Remove what the attempt left; add a note to the error when that fails."""
        try:
            for entry in self._ours():
                remove_snapshot(
                    self._session,
                    self._vm_moref,
                    entry.moref,
                    appliance_id=self._marker.appliance_id,
                    patience=self._patience.unstoppable(),
                )
        except VsphereError as second:
            error.add_note(f"what it left could not be removed: {second}")


def _stepped_down(rung: Rung, error: VsphereError) -> Finding:
    return Finding(
        "snapshot.quiesce-failed",
        f"an attempt for {rung.name.lower().replace('_', '-')} consistency failed: {error}",
        "look at the VSS writers or the freeze scripts in the guest",
    )


def _reply_was_lost(error: VsphereError) -> Finding:
    return Finding(
        "snapshot.reply-lost",
        f"the snapshot was made and found by its marker, though its reply was lost: {error}",
        "none",
        Weight.NOTE,
    )
