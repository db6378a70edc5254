"""Restores and instant recoveries as operations of the daemon: what API and UI ask for.

What is asked is checked as far as that needs no hypervisor; then a thread of its own logs in, works
and ends (`operations.py`). Sessions are served by this process's own server.

Thread model: any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from appliance.base.errors import UsageError
from appliance.base.ids import RunId
from appliance.base.run_context import Progress
from appliance.catalog.catalog import Catalog
from appliance.exports.datastore.session import Presentation, SessionRecord, SessionStore
from appliance.jobs.instant_recovery import StartOptions, resume, start, wanted_disks
from appliance.jobs.live_run import LiveRun
from appliance.jobs.recovery_end import discard_session, finalise
from appliance.jobs.recovery_room import RecoveryRoom
from appliance.jobs.rollback_contract import RollbackOptions
from appliance.jobs.vm_restore import (
    RestoreRoom,
    VmRestoreOptions,
    restore_vm,
)
from appliance.jobs.vm_rollback import roll_back_vm
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.service.operations import (
    OperationEnd,
    OperationKind,
    OperationOrder,
    Operations,
    Work,
)
from appliance.service.recoveries import open_recovery_target, recovery_room
from appliance.service.recovery_results import (
    restored_result,
    rolled_back_result,
    started_result,
)
from appliance.service.recovery_server import RecoveryServer, sessions_folder
from appliance.service.vm_sources import OpenedTarget, clean_up, open_target
from appliance.sources.vsphere_transports import SourceTools
from appliance.targets.contract import Keep, WantedVmPlace
from appliance.targets.recovery import Breadth, MoveRequest, RecoveryRequest

_FOLLOWING = {
    "plan": "publish",
    "publish": "serve",
    "serve": "mount",
    "mount": "register",
    "register": "power on",
    "power on": "wait for the guest's heartbeat",
    "move": "prove that nothing is left behind",
    "proof": "settle",
    "settle": "unmount",
    "take away": "unmount",
    "unmount": "withdraw",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class InstantWishes:
    """How a VM is to run from a point; what is empty is chosen."""

    name: str = ""
    place: WantedVmPlace = field(default_factory=WantedVmPlace)
    networks: tuple[tuple[str, str], ...] = ()
    isolated: frozenset[str] = frozenset()
    isolate_all: bool = False
    unconnected: frozenset[str] = frozenset()
    mac: Keep = Keep.AUTO
    identity: Keep = Keep.AUTO
    address: str = ""
    breadth: Breadth = Breadth.HOST
    presentation: Presentation | None = None
    start: StartOptions = field(default_factory=lambda: StartOptions(power_on=True))


class RecoveryService:
    def __init__(
        self,
        catalog: Catalog,
        repository: Repository,
        home: Path,
        server: RecoveryServer,
        tools: SourceTools | None = None,
    ) -> None:
        self._catalog = catalog
        self._repository = repository
        self._home = home
        self._server = server
        self._tools = tools or SourceTools()
        self.operations = Operations(catalog)

    # Restores

    def restore(
        self, point: str, host: str | None, options: VmRestoreOptions, note: str = ""
    ) -> RunId:
        """A new VM of the point. Raises: PointNotFoundError, HostNotFoundError, UsageError."""
        manifest = self._repository.points.find(point)
        host = self._host(host)

        def work(live: LiveRun) -> OperationEnd:
            with self._opened(live, host) as opened:
                live.begins("write disks")

                def disk_begins(number: int, label: str, progress: Progress) -> None:
                    live.disk_begins(manifest.vm, label or f"disk {number}", progress)

                made = restore_vm(
                    self._room(live), opened.target, manifest, options, live.context, disk_begins
                )
                live.vm_ends(manifest.vm)
            return OperationEnd(result=restored_result(made), reasons=made.reasons)

        return self._begin(OperationKind.RESTORE, manifest, host, note, work)

    def roll_back(
        self, point: str, host: str | None, options: RollbackOptions, note: str = ""
    ) -> RunId:
        """The VM of the point itself. Raises: as `restore`."""
        manifest = self._repository.points.find(point)
        host = self._host(host)

        def work(live: LiveRun) -> OperationEnd:
            with self._opened(live, host) as opened:
                live.begins("check and compare")
                rolled = roll_back_vm(
                    self._room(live),
                    self._home,
                    opened.source,
                    opened.target,
                    manifest,
                    options,
                    live.context,
                    lambda phase, progress: live.disk_begins(manifest.vm, phase, progress),
                )
                live.vm_ends(manifest.vm)
            return OperationEnd(result=rolled_back_result(rolled), reasons=tuple(rolled.reasons))

        return self._begin(OperationKind.ROLL_BACK, manifest, host, note, work)

    @contextmanager
    def _opened(self, live: LiveRun, host: str) -> Iterator[OpenedTarget]:
        """Logged in to a host on which killed runs have left nothing."""
        live.begins("log in")
        live.expects_vms(1)
        with open_target(self._catalog, host, self._tools) as opened:
            live.begins("clean up")
            clean_up(self._catalog, [opened.source], cancel=live.context.cancel)
            yield opened

    # Instant recovery

    def start(self, point: str, host: str | None, wishes: InstantWishes, note: str = "") -> RunId:
        """A session of the point, and a VM of the session. Raises: as `restore`; NotAVmPointError.

        The session's id stands in the operation's facts from the beginning.
        """
        manifest = self._repository.points.find(point)
        host = self._host(host)
        disks = wanted_disks(manifest)
        session_id = self._store.new_id()
        request = RecoveryRequest(
            session_id=session_id,
            name=wishes.name,
            hardware=manifest.hardware,
            disks=disks,
            place=wishes.place,
            networks=wishes.networks,
            isolated=wishes.isolated,
            isolate_all=wishes.isolate_all,
            unconnected=wishes.unconnected,
            mac=wishes.mac,
            identity=wishes.identity,
            address=wishes.address,
            breadth=wishes.breadth,
            presentation=wishes.presentation,
        )

        def work(live: LiveRun) -> OperationEnd:
            live.begins("log in")
            with open_recovery_target(self._catalog, self._home, host) as target:
                live.begins("plan")
                room = self._recovery_room(live)
                started = start(room, target, manifest, request, wishes.start, live.context)
            return OperationEnd(result=started_result(started), reasons=started.reasons)

        return self._begin(
            OperationKind.INSTANT_START, manifest, host, note, work, session_id=session_id
        )

    def resume(self, session_id: str, options: StartOptions) -> RunId:
        """Go on with a start that ended early. Raises: SessionNotFoundError, UsageError."""
        record = self._session(session_id)

        def work(live: LiveRun) -> OperationEnd:
            live.begins("log in")
            with open_recovery_target(self._catalog, self._home, record.host) as target:
                live.begins("go on")
                started = resume(
                    self._recovery_room(live), target, session_id, options, live.context
                )
            return OperationEnd(result=started_result(started), reasons=started.reasons)

        return self._of_session(OperationKind.INSTANT_START, record, work)

    def finalise(self, session_id: str, datastore: str, *, allow_downtime: bool) -> RunId:
        """Move the VM to production storage. Raises: as `resume`."""
        record = self._session(session_id)
        size_bytes = sum(disk.size_bytes for disk in record.disks)
        request = MoveRequest(
            datastore=datastore,
            preferred=self._first_datastore(record),
            need_bytes=0,  # disks arrive thin, so the host alone can tell
            allow_downtime=allow_downtime,
        )

        def work(live: LiveRun) -> OperationEnd:
            live.begins("log in")
            live.context.progress.expect(size_bytes)
            told = 0

            def moved(percent: int) -> None:
                nonlocal told
                live.begins(f"move, {percent} %")
                live.context.progress.advance(size_bytes * max(percent - told, 0) // 100)
                told = max(percent, told)

            with open_recovery_target(self._catalog, self._home, record.host) as target:
                live.begins("move")
                ended = finalise(
                    self._recovery_room(live), target, session_id, request, live.context, moved
                )
            return OperationEnd(result={"vm": record.vm}, reasons=ended.reasons)

        return self._of_session(OperationKind.INSTANT_FINALISE, record, work)

    def discard(self, session_id: str) -> RunId:
        """Take the VM away and drop what its guest wrote. Raises: SessionNotFoundError."""
        record = self._store.get(session_id)

        def work(live: LiveRun) -> OperationEnd:
            if record.presentation is Presentation.NBD:
                live.begins("withdraw")
                with self._store.working_on(session_id):
                    self._server.withdraw(session_id)
                    self._store.remove(session_id)
                return OperationEnd(result={"vm": record.vm})
            live.begins("log in")
            with open_recovery_target(self._catalog, self._home, record.host) as target:
                live.begins("take away")
                ended = discard_session(self._recovery_room(live), target, session_id, live.context)
            return OperationEnd(result={"vm": record.vm}, reasons=ended.reasons)

        return self._of_session(OperationKind.INSTANT_DISCARD, record, work)

    # What these share

    @property
    def _store(self) -> SessionStore:
        return SessionStore(sessions_folder(self._home))

    def _session(self, session_id: str) -> SessionRecord:
        record = self._store.get(session_id)
        if record.presentation is Presentation.NBD:
            raise UsageError(f"session {session_id} runs in this appliance's sandbox")
        return record

    def _host(self, name: str | None) -> str:
        """The host that is named, or the only one there is."""
        hosts = self._catalog.hosts
        if name:
            return hosts.get(name).name
        names: Sequence[str] = [record.name for record in hosts.list()]
        if len(names) != 1:
            raise UsageError(f"say on which host (registered: {', '.join(names) or 'none'})")
        return names[0]

    def _begin(
        self,
        kind: OperationKind,
        manifest: Manifest,
        host: str,
        note: str,
        work: Work,
        **facts: Any,
    ) -> RunId:
        facts |= {"point_id": manifest.point_id} | ({"note": note} if note else {})
        order = OperationOrder(kind=kind, vm=manifest.vm, host=host, facts=facts)
        return self.operations.begin(order, work)

    def _of_session(self, kind: OperationKind, record: SessionRecord, work: Work) -> RunId:
        manifest_name = self._repository.points.find(record.point_id).vm
        facts = {"session_id": record.session_id, "point_id": record.point_id}
        order = OperationOrder(kind=kind, vm=manifest_name, host=record.host, facts=facts)
        return self.operations.begin(order, work)

    def _room(self, live: LiveRun) -> RestoreRoom:
        return RestoreRoom(
            repository=self._repository,
            runs=self._catalog.runs,
            run_locks=self._catalog.run_locks,
            run_id=live.run_id,
        )

    def _recovery_room(self, live: LiveRun) -> RecoveryRoom:
        def step_ends(name: str, seconds: float) -> None:
            if name in _FOLLOWING:
                live.begins(_FOLLOWING[name])

        room = recovery_room(self._home, self._catalog, self._repository, step_ends)
        return replace(room, server=self._server)

    def _first_datastore(self, record: SessionRecord) -> str:
        """Where the VM was when it was backed up."""
        placement = self._repository.points.find(record.point_id).hardware.get("placement")
        datastores = placement.get("datastores") if isinstance(placement, dict) else None
        names = [each.get("name") for each in datastores or () if isinstance(each, dict)]
        return next((name for name in names if isinstance(name, str)), "")
