"""Instant recovery in the practice vCenter: a point of the tiny guest, and a daemon of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from appliance.base.run_context import CancelToken, Progress, RunContext
from appliance.catalog.catalog import Catalog
from appliance.exports.nfs import NfsServer, PortmapMode, handle_key
from appliance.jobs.instant_recovery import (
    StartOptions,
    StartResult,
    resume,
    start,
    wanted_disks,
)
from appliance.jobs.recovery_end import EndResult, discard_session, finalise
from appliance.jobs.recovery_room import RecoveryRoom
from appliance.service.recoveries import open_recovery_target, recovery_room
from appliance.service.recovery_server import RecoveryServer
from appliance.targets.contract import Keep, WantedVmPlace
from appliance.targets.recovery import Breadth, MoveRequest, RecoveryRequest, RecoveryTarget
from lab.esx.vm_state import PowerState
from lab.guests import GuestKind, build, read_journal
from lab.vcenter.datastores import Datastore
from lab.vcenter.networks import Network
from lab.vcenter.virtual_machine_engine import EngineMachine
from tests.support.holdfast_program import serving
from tests.support.instant_command import instant
from tests.support.lab_nfs import own_address
from tests.support.vm_lab import VmLab, vm_lab

WITHIN_S = 180.0
_ACK = re.compile(r"^ACK (\d+)$")


@dataclass
class InstantLab:
    """`address` is where the daemon serves NFS; `point` is of the VM `web`, which is off."""

    lab: VmLab
    address: str
    point: str
    daemon: subprocess.Popen[str] | None = None

    def serve(self) -> contextlib.AbstractContextManager[tuple[subprocess.Popen[str], Any]]:
        return serving(self.lab.home, *self.serve_words)

    @property
    def serve_words(self) -> tuple[str, ...]:
        return (
            *("serve", "--bind", self.address, "--port", "0", "--portmap", "own"),
            *("--reserve", "0"),
        )

    def start(self, *words: str, expect: int = 0) -> Any:
        return self.command(
            *("start", self.point, "--address", self.address, "--reserve", "0", *words),
            expect=expect,
        )

    def command(self, verb: str, *words: str, expect: int = 0) -> Any:
        return instant(self.lab.home, verb, *words, expect=expect)

    def machine(self, name: str) -> EngineMachine:
        every = self.lab.vcenter.registry.all(EngineMachine)
        (found,) = [one for one in every if one.name == name]
        return found

    def traces(self) -> dict[str, list[str]]:
        """What of sessions there may be at the vCenter and in the state folder."""
        registry = self.lab.vcenter.registry
        sessions = self.lab.home / "sessions"
        with self.lab.catalog() as catalog:
            intents = [f"{one.kind} {one.name}" for one in catalog.intents.open_intents()]
        return {
            "vms": sorted(one.name for one in registry.all(EngineMachine)),
            "datastores": sorted(one.name for one in registry.all(Datastore)),
            "networks": sorted(one.name for one in registry.all(Network)),
            "switches": sorted(
                f"{host.name} {name}"
                for host in self.lab.inventory.hosts
                for name in host.network_system.switches
            ),
            "folders": sorted(path.name for path in sessions.iterdir() if path.is_dir())
            if sessions.exists()
            else [],
            "intents": sorted(intents),
        }


@dataclass
class RunningGuest:
    """The tiny guest in a VM, by its serial line."""

    machine: EngineMachine

    @property
    def console(self) -> Any:
        running = self.machine.engine.machine
        assert running is not None, "the VM is off"
        return running.console

    def say(self, line: str) -> None:
        running = self.machine.engine.machine
        assert running is not None
        running.send_line(line)

    @property
    def acknowledged(self) -> int:
        """The highest number that the guest has seen durable."""
        with self.console._state:
            lines = [line for _, line in self.console._lines]
        return max((int(match[1]) for match in map(_ACK.match, lines) if match), default=0)

    def wait_for(self, number: int) -> None:
        deadline_s = time.monotonic() + WITHIN_S
        while self.acknowledged < number:
            assert self.machine.engine.power is PowerState.ON, "the guest ended"
            assert time.monotonic() < deadline_s, f"{number} was never acknowledged"
            time.sleep(0.05)

    def stop(self) -> int:
        """Stop the journal; return the last number that was acknowledged."""
        mark = self.console.mark
        self.say("journal stop")
        assert self.console.wait_line("^JOURNAL stop", since=mark, timeout_s=WITHIN_S)
        return self.acknowledged


class DatastoreDisk:
    """A disk of a machine, read through its datastore: wherever that is."""

    def __init__(self, machine: EngineMachine) -> None:
        engine = machine.engine
        self._chain = engine.chain(engine.config.disks[0])
        extent = self._chain.base.extent_path
        self._files = engine.site.datastores.files_of(extent)
        self._path = extent.path

    def read_at(self, offset: int, length: int) -> bytes:
        return self._files.read_at(self._path, offset, length)


def journal_of(machine: EngineMachine) -> list[int]:
    return read_journal(DatastoreDisk(machine))


@contextlib.contextmanager
def instant_lab(**options: Any) -> Iterator[InstantLab]:
    """With a point of `web`; nothing is served yet."""
    with vm_lab(**options) as lab:
        lab.add_machine("web", build(GuestKind.TINY))
        lab.holdfast("backup", "vm", "web", "--quiesce", "crash", "--quiet")
        with lab.repository() as repository:
            point = repository.points.latest("web")
            assert point is not None
        yield InstantLab(lab=lab, address=own_address(), point=point.point_id)


@dataclass
class InProcess:
    """The jobs in this process, with a server of their own in place of the daemon."""

    here: InstantLab
    catalog: Catalog
    room: RecoveryRoom
    target: RecoveryTarget

    def request(self, **changes: Any) -> RecoveryRequest:
        manifest = self.room.repository.points.find(self.here.point)
        plain = RecoveryRequest(
            session_id=self.room.store.new_id(),
            name="",
            hardware=manifest.hardware,
            disks=wanted_disks(manifest),
            place=WantedVmPlace(),
            networks=(),
            isolated=frozenset(),
            isolate_all=True,
            unconnected=frozenset(),
            mac=Keep.AUTO,
            identity=Keep.AUTO,
            address=self.here.address,
            breadth=Breadth.HOST,
        )
        return replace(plain, **changes)

    def start(
        self,
        *,
        target: RecoveryTarget | None = None,
        cancel: CancelToken | None = None,
        power_on: bool = False,
        **changes: Any,
    ) -> StartResult:
        manifest = self.room.repository.points.find(self.here.point)
        return start(
            self.room,
            target or self.target,
            manifest,
            self.request(**changes),
            StartOptions(power_on=power_on),
            RunContext(cancel or CancelToken(), Progress()),
        )

    def resume(self, session_id: str, **options: Any) -> StartResult:
        options.setdefault("power_on", False)
        return resume(
            self.room, self.target, session_id, StartOptions(**options), RunContext.quiet()
        )

    def discard(self, session_id: str, target: RecoveryTarget | None = None) -> EndResult:
        return discard_session(self.room, target or self.target, session_id, RunContext.quiet())

    def finalise(
        self, session_id: str, *, target: RecoveryTarget | None = None, **changes: Any
    ) -> EndResult:
        request = MoveRequest(datastore="ds2", preferred="", need_bytes=0, allow_downtime=False)
        return finalise(
            self.room,
            target or self.target,
            session_id,
            replace(request, **changes),
            RunContext.quiet(),
        )


@contextlib.contextmanager
def in_process(here: InstantLab) -> Iterator[InProcess]:
    home = here.lab.home
    with (
        here.lab.catalog() as catalog,
        here.lab.repository() as repository,
        open_recovery_target(catalog, home, None) as target,
    ):
        room = recovery_room(home, catalog, repository)
        nfs = NfsServer(
            key=handle_key(home / "nfs-handles.key"),
            host=here.address,
            portmap_mode=PortmapMode.OWN,
        )
        server = RecoveryServer(room.store, repository, nfs)
        server.start()
        try:
            yield InProcess(here, catalog, replace(room, server=server), target)
        finally:
            server.stop()
