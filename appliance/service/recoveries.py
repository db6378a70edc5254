"""Instant recovery wired together: sessions, daemon, catalog, repository and a logged-in host.

Thread model: `open_recovery` and what it yields belong to one thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.base.errors import UsageError
from appliance.base.reasons import Reason
from appliance.catalog.catalog import Catalog, recovery_run
from appliance.catalog.hosts import HostRecord
from appliance.catalog.intents import IntentKind
from appliance.exports.datastore.session import SessionStore
from appliance.exports.smb.samba_folder import SambaFolder
from appliance.jobs.recovery_room import RecoveryRoom, SessionServer, StepEnds
from appliance.repository.repository import Repository
from appliance.service.daemon_client import DaemonClient
from appliance.service.hosts import open_host
from appliance.service.recovery_server import IscsiNotServedError, samba_folder, sessions_folder
from appliance.sources.hyperv_host import HypervHost
from appliance.targets.hyperv_recovery import HypervRecovery
from appliance.targets.hyperv_recovery_plan import ServedAt
from appliance.targets.recovery import RecoveryTarget, TargetState, WitnessedTarget
from appliance.targets.vsphere_recovery import NAME_PREFIX, VsphereRecovery

_KINDS = (IntentKind.DATASTORE, IntentKind.PORT_GROUP, IntentKind.VM)
_RUN_PREFIX = "instant-"


class CatalogJournal:
    """A `RecoveryJournal` over the catalog's intents: one of each kind per session."""

    def __init__(self, catalog: Catalog) -> None:
        self._intents = catalog.intents

    def begin(self, session_id: str, host: str, state: TargetState) -> None:
        run_id = recovery_run(session_id)
        there = {intent.kind for intent in self._intents.open_intents(run_id=run_id)}
        for kind in _KINDS:
            if kind not in there:
                self._intents.record(
                    kind,
                    host=host,
                    run_id=run_id,
                    target_moref="",
                    name=f"{NAME_PREFIX}{session_id}",
                    detail=state,
                )

    def made(self, session_id: str, vm_key: str) -> None:
        for intent in self._intents.open_intents(run_id=recovery_run(session_id)):
            if intent.kind is IntentKind.VM:
                self._intents.complete(intent.id, vm_key)

    def end(self, session_id: str) -> None:
        for intent in self._intents.open_intents(run_id=recovery_run(session_id)):
            self._intents.close(intent.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSession:
    """Something of a session may be on a host, but its folder is gone, and its writes with it."""

    session_id: str
    host: str
    state: TargetState
    vm_key: str | None


def lost_sessions(catalog: Catalog) -> list[LostSession]:
    """By the journal. Raises StorageError."""
    found: dict[str, LostSession] = {}
    for intent in catalog.intents.abandoned():
        if not intent.run_id.startswith(_RUN_PREFIX):
            continue
        session_id = intent.run_id.removeprefix(_RUN_PREFIX)
        known = found.get(session_id)
        key = intent.made_moref or (known.vm_key if known else None)
        found[session_id] = LostSession(
            session_id=session_id, host=intent.host, state=TargetState(intent.detail), vm_key=key
        )
    return list(found.values())


def clear_lost(catalog: Catalog, target: RecoveryTarget, lost: LostSession) -> tuple[Reason, ...]:
    """Remove what of it is on the host. Raises SourceError, TargetError: it is not all gone."""
    with catalog.run_locks.cleaning():
        told = [*target.take_away(lost.state, lost.vm_key), *target.unmount(lost.state)]
        CatalogJournal(catalog).end(lost.session_id)
    return tuple(told)


@contextmanager
def open_recovery_target(
    catalog: Catalog, home: Path, host: str | None, server: SessionServer | None = None
) -> Iterator[WitnessedTarget]:
    """Log in to one registered host; without a name, to the only one there is.

    `server`: who shows sessions to hosts; None: the daemon, asked over its socket.

    Raises: HostNotFoundError, UsageError, DomainFileError, and as `open_host`.
    """
    with open_host(catalog, _one_host(catalog, host)) as opened:
        if isinstance(opened, HypervHost):
            serving = server or DaemonClient(home)

            def served_at() -> ServedAt:
                if not serving.iscsi_port:
                    raise IscsiNotServedError(f"{opened.name} has its disks over iSCSI")
                return ServedAt(
                    iscsi_port=serving.iscsi_port,
                    smb_port=serving.smb_port,
                    domain=SambaFolder(samba_folder(home)).domain,
                )

            yield HypervRecovery(
                opened,
                catalog.appliance_id,
                served_at=served_at,
                chap=SessionStore(sessions_folder(home)).chap,
                share_account=SambaFolder(samba_folder(home)).account,
            )
        else:
            yield VsphereRecovery(opened, catalog.appliance_id)


def _one_host(catalog: Catalog, host: str | None) -> HostRecord:
    records = [catalog.hosts.get(host)] if host else catalog.hosts.list()
    if len(records) != 1:
        names = ", ".join(record.name for record in records) or "none; `holdfast host add`"
        raise UsageError(f"say on which host, with --host (registered: {names})")
    return records[0]


def recovery_room(
    home: Path,
    catalog: Catalog,
    repository: Repository,
    step_ends: StepEnds = lambda name, seconds: None,
    server: SessionServer | None = None,
) -> RecoveryRoom:
    """`server`: who shows sessions to hosts; None: the daemon, asked over its socket."""
    folder = sessions_folder(home)
    return RecoveryRoom(
        repository=repository,
        store=SessionStore(folder),
        folder=folder,
        server=server or DaemonClient(home),
        journal=CatalogJournal(catalog),
        clock=catalog.clock,
        step_ends=step_ends,
    )
