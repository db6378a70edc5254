"""A practice vCenter with a host, its data plane and machines, registered in a state folder.

with vm_lab() as lab:
    guest = lab.add_guest("web")            # a tiny Linux that runs and writes
    lab.holdfast("backup", "vm", "web")
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from blake3 import blake3

from appliance.base.backoff import Backoff
from appliance.base.consistency import Consistency
from appliance.base.run_context import Progress, RunContext
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.jobs.backup_limits import BackupLimits, LimitPolicy
from appliance.jobs.vm_backup import (
    BackupRoom,
    Followers,
    VmBackupOptions,
    VmResult,
    back_up_vms,
)
from appliance.jobs.vm_selection import SelectedVm, select_vms
from appliance.repository.repository import Repository
from appliance.service.protection import point_names
from appliance.service.vm_sources import clean_up, open_sources
from appliance.sources.contract import ConsistencyPolicy, Orphan, VmSource
from appliance.sources.frozen import FrozenDisk
from appliance.sources.vsphere_transports import SourceTools
from lab.data_plane.data_plane import DataPlane
from lab.esx.datastore import LabDatastore
from lab.esx.vm_library import VmLibrary
from lab.faults import FaultSwitches
from lab.guests import GuestKind, build
from lab.vcenter.inventory import Inventory, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.virtual_machine_engine import EngineMachine
from lab.vcenter.virtual_machine_setup import add_guest, give_library
from tests.support import holdfast_program
from tests.support.lab import client
from tests.support.lab_machines import done

GUEST_WITHIN_S = 180.0
CRASH = ConsistencyPolicy(wanted=Consistency.CRASH)


@dataclass
class VmLab:
    folder: Path
    vcenter: LabVcenter
    inventory: Inventory
    library: VmLibrary
    plane: DataPlane
    instance: Any
    home: Path = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.folder / "home"

    @property
    def faults(self) -> FaultSwitches:
        return self.vcenter.switches

    def client_of(self, machine: EngineMachine) -> Any:
        return machine.vim_type(machine.moid, self.instance._stub)

    def add_machine(self, name: str, image: Path, **options: Any) -> EngineMachine:
        """A machine that is off, over a copy of a raw image."""
        return add_guest(self.inventory, name, image, **options)

    def add_guest(self, name: str, **options: Any) -> Guest:
        machine = self.add_machine(name, build(GuestKind.TINY), **options)
        done(self.client_of(machine).PowerOnVM_Task(None))
        guest = Guest(self, machine)
        guest.wait_until_ready()
        return guest

    def snapshots_of(self, machine: EngineMachine) -> list[str]:
        tree = self.client_of(machine).snapshot
        names: list[str] = []
        waiting = list(tree.rootSnapshotList) if tree else []
        while waiting:
            node = waiting.pop(0)
            names.append(node.name)
            waiting += node.childSnapshotList
        return names

    def catalog(self) -> Catalog:
        return Catalog.open(self.home)

    def repository(self) -> Repository:
        return Repository.open(self.home / "repository")

    def holdfast(self, *words: str, expect: int = 0, **extra: str) -> Any:
        return holdfast_program.run_json(self.home, *words, expect=expect, **extra)


@dataclass
class Guest:
    """A tiny guest that runs, and its serial line."""

    lab: VmLab
    machine: EngineMachine

    @property
    def vm(self) -> Any:
        return self.lab.client_of(self.machine)

    @property
    def flat(self) -> Path:
        """The base file of its disk: frozen while a snapshot stands, merged when none does."""
        return self.lab.folder / "ds1" / self.machine.name / f"{self.machine.name}-flat.vmdk"

    def wait_until_ready(self) -> None:
        self._answer("HOLDFAST-READY", since=0)

    def ask(self, line: str, answer: str) -> str:
        """Send a line; return the guest's line that begins with `answer`."""
        running = self._running
        mark = running.console.mark
        running.send_line(line)
        return self._answer(answer, since=mark)

    def write(self, mib: int) -> None:
        """Let the guest write new random files and sync them."""
        self.ask(f"change {mib}", "CHANGED")

    def _answer(self, text: str, since: int) -> str:
        found = self._running.console.wait_line(f"^{text}", since=since, timeout_s=GUEST_WITHIN_S)
        assert found is not None, f"the guest did not say {text}"
        return str(found)

    @property
    def _running(self) -> Any:
        machine = self.machine.engine.machine
        assert machine is not None
        return machine


def digest_of(path: Path) -> str:
    return blake3().update_mmap(path).hexdigest()


@contextlib.contextmanager
def vm_lab(
    *, lease_timeout_s: float = 300.0, now: Callable[[], datetime] | None = None
) -> Iterator[VmLab]:
    """With one host, "lab", registered in a state folder that has a repository.

    `now`: the time by which snapshots are made.
    """
    folder = Path(tempfile.mkdtemp(prefix="holdfast-lab-"))  # sockets below it: a short path
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        stores = []
        for name in ("ds1", "ds2"):
            (folder / name).mkdir()
            stores.append(LabDatastore(name, folder / name))
        vcenter = LabVcenter()
        inventory = build_inventory(vcenter, hosts=["127.0.1.1", "127.0.1.2"], stores=stores)
        library = give_library(
            inventory,
            folder / "run",
            faults=vcenter.switches,
            locks=vcenter.file_locks,
            now=now,
        )
        stack.callback(library.close)
        stack.enter_context(vcenter)
        plane = DataPlane(vcenter, library.site, lease_timeout_s=lease_timeout_s)
        for host in inventory.hosts:
            plane.serve_host(host)
        instance = stack.enter_context(client(vcenter))
        lab = VmLab(folder, vcenter, inventory, library, plane, instance)
        _register(lab)
        yield lab


def _register(lab: VmLab) -> None:
    lab.home.mkdir(mode=0o700)
    Repository.create(lab.home / "repository")
    with lab.catalog() as catalog:
        vcenter = lab.vcenter
        record = HostRecord(
            name="lab",
            kind=HostKind.VSPHERE,
            address=vcenter.address,
            port=vcenter.port,
            user=vcenter.user,
            fingerprint=vcenter.fingerprint,
            server_id=vcenter.instance_uuid,
            added_at=catalog.clock.now(),
        )
        catalog.hosts.add(record, Secret.of_text(vcenter.password))


@contextlib.contextmanager
def backing_up(lab: VmLab, tools: SourceTools | None = None) -> Iterator[InProcess]:
    """The registered lab as a source in this process."""
    with (
        lab.catalog() as catalog,
        lab.repository() as repository,
        open_sources(catalog, tools=tools or quick_tools()) as opened,
    ):
        yield InProcess(lab, catalog, repository, opened.sources)


def quick_tools(**more: Any) -> SourceTools:
    """Retries without the pauses that real hosts need."""
    return SourceTools(
        reopening=Backoff(attempts=4, first_s=0.05, most_s=0.2),
        wait=lambda seconds: time.sleep(min(seconds, 0.05)),
        **more,
    )


@dataclass
class InProcess:
    lab: VmLab
    catalog: Catalog
    repository: Repository
    sources: Sequence[VmSource]
    frozen: dict[tuple[str, int], str] = field(default_factory=dict)
    """Digest of the frozen base files by (VM, disk number), taken by the test while they stood."""

    def back_up(
        self,
        *patterns: str,
        tags: Sequence[str] = (),
        limits: LimitPolicy | None = None,
        context: RunContext | None = None,
        **options: Any,
    ) -> list[VmResult]:
        self.frozen.clear()
        consistency = options.pop("consistency", CRASH)
        options.setdefault("backoff", Backoff(attempts=2, first_s=0.05))
        room = BackupRoom(
            repository=self.repository,
            runs=self.catalog.runs,
            run_locks=self.catalog.run_locks,
            limits=BackupLimits(limits or LimitPolicy()),
            state_folder=self.lab.home,
        )
        names = point_names(self.repository.points.list())
        selection = select_vms(self.sources, patterns, tags, names)
        return back_up_vms(
            room,
            selection.vms,
            VmBackupOptions(consistency=consistency, **options),
            context or RunContext.quiet(),
            Followers(disk_begins=self.see),
        )

    def see(self, vm: SelectedVm, disk: FrozenDisk, progress: Progress) -> None:
        stem = vm.vm.name + ("" if disk.number == 0 else f"_{disk.number}")
        flat = self.lab.folder / "ds1" / vm.vm.name / f"{stem}-flat.vmdk"
        self.frozen[vm.point_name, disk.number] = digest_of(flat)

    def stored(self, vm: str, number: int = 0) -> str:
        """Digest of a disk of the newest point."""
        point = self.repository.points.latest(vm)
        assert point is not None
        digest = blake3()
        with contextlib.closing(self.repository.open_image(point, number)) as image:
            for offset in range(0, image.size_bytes, 8 << 20):
                digest.update(image.read_at(offset, min(8 << 20, image.size_bytes - offset)))
        return digest.hexdigest()

    def clean_up(self) -> list[Orphan]:
        return clean_up(self.catalog, self.sources)
