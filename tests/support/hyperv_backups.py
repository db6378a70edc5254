"""The practice Hyper-V host registered in a state folder, as an operator would, and backed up."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from appliance.base.backoff import Backoff
from appliance.base.run_context import Progress, RunContext
from appliance.catalog.catalog import Catalog
from appliance.jobs.backup_limits import BackupLimits, LimitPolicy
from appliance.jobs.vm_backup import BackupRoom, Followers, VmBackupOptions, VmResult, back_up_vms
from appliance.jobs.vm_selection import SelectedVm, select_vms
from appliance.repository.repository import Repository
from appliance.service.hosts import open_to_read
from appliance.service.protection import point_names
from appliance.service.vm_sources import HostIntents, clean_up
from appliance.sources.contract import Orphan
from appliance.sources.frozen import FrozenDisk
from appliance.sources.hyperv import HypervSource, HypervTools
from appliance.sources.hyperv_host import HypervHost
from lab.hyperv_host.practice_host import PracticeHost
from lab.hyperv_host.vhdx_chain import close_chain, open_chain
from lab.hyperv_host.virtual_machine import HypervVm
from tests.support import holdfast_program
from tests.support.hyperv_lab import HypervLab

HOST = "hv1"


@dataclass
class HypervAppliance:
    """`frozen` are digests of the frozen disks, taken by the lab's own reader while they stood."""

    lab: HypervLab
    home: Path
    frozen: dict[tuple[str, int], str] = field(default_factory=dict)
    lacking: dict[str, bool] = field(default_factory=dict)
    """What the host is taken to say of itself, in place of what it says."""

    def holdfast(self, *words: str, expect: int = 0) -> Any:
        return holdfast_program.run_json(self.home, *words, expect=expect)

    def register(self) -> Any:
        practice = self.lab.practice
        secret = self.home / "password"
        secret.touch(mode=0o600)
        secret.write_text(practice.password)
        return self.holdfast(
            *("host", "add", HOST, "--type", "hyperv"),
            *("--address", f"127.0.0.1:{practice.winrm.https_port}"),
            *("--user", practice.user, "--password-file", str(secret)),
            *("--accept-fingerprint", practice.winrm.fingerprint),
            *("--smb-port", str(practice.samba.port)),
            *(word for node in self.lab.others for word in node_words(node)),
        )

    def catalog(self) -> Catalog:
        return Catalog.open(self.home)

    def repository(self) -> Repository:
        return Repository.open(self.home / "repository")

    def stored(self, vm: str, number: int = 0) -> str:
        """Digest of a disk of the newest point."""
        with self.repository() as repository:
            point = repository.points.latest(vm)
            assert point is not None
            digest = blake3()
            with contextlib.closing(repository.open_image(point, number)) as image:
                for offset in range(0, image.size_bytes, 8 << 20):
                    digest.update(image.read_at(offset, min(8 << 20, image.size_bytes - offset)))
            return digest.hexdigest()

    def back_up(
        self, *patterns: str, context: RunContext | None = None, **options: Any
    ) -> list[VmResult]:
        """In this process, without the pauses that real hosts need."""
        self.frozen.clear()
        options.setdefault("backoff", Backoff(attempts=1))
        with self.catalog() as catalog, self.repository() as repository, self.source(catalog) as to:
            room = BackupRoom(
                repository=repository,
                runs=catalog.runs,
                run_locks=catalog.run_locks,
                limits=BackupLimits(LimitPolicy()),
                state_folder=self.home,
            )
            names = point_names(repository.points.list())
            selection = select_vms([to], patterns, (), names)
            return back_up_vms(
                room,
                selection.vms,
                VmBackupOptions(**options),
                context or RunContext.quiet(),
                Followers(disk_begins=self._see),
            )

    def clean_up(self) -> list[Orphan]:
        with self.catalog() as catalog, self.source(catalog) as source:
            return clean_up(catalog, [source])

    @contextmanager
    def source(self, catalog: Catalog) -> Iterator[HypervSource]:
        with self.host_and_source(catalog) as (_, source):
            yield source

    @contextmanager
    def host_and_source(self, catalog: Catalog) -> Iterator[tuple[HypervHost, HypervSource]]:
        host = open_to_read(catalog, catalog.hosts.get(HOST))
        assert isinstance(host, HypervHost)
        host.facts = host.facts.model_copy(update=self.lacking)
        tools = HypervTools(
            reopening=Backoff(attempts=4, first_s=0.05, most_s=0.2),
            wait=lambda seconds: time.sleep(min(seconds, 0.05)),
        )
        intents = HostIntents(catalog, HOST)
        source = HypervSource(host, intents, catalog.appliance_id, catalog.clock, tools)
        try:
            yield host, source
        finally:
            source.close()

    def _see(self, vm: SelectedVm, disk: FrozenDisk, progress: Progress) -> None:
        machine = self.lab.machine(vm.vm.key)
        if not machine.checkpoints:
            return
        self.frozen[vm.vm.name, disk.number] = frozen_digest(machine)


def node_words(node: PracticeHost) -> tuple[str, ...]:
    """How `host add` is told of it."""
    return (
        *("--node", f"127.0.0.1:{node.winrm.https_port}:{node.samba.port}"),
        *("--accept-fingerprint", node.winrm.fingerprint),
    )


def frozen_digest(vm: HypervVm) -> str:
    """Of the first disk's file below the leaf, which stands still while there is a checkpoint."""
    frozen = next(iter(vm.checkpoints[-1].frozen.values()))
    chain = open_chain(vm.site.volumes, frozen, writable=False)
    try:
        disk = chain[0].disk
        digest = blake3()
        for offset in range(0, disk.size_bytes, 8 << 20):
            digest.update(disk.read_at(offset, min(8 << 20, disk.size_bytes - offset)))
        return digest.hexdigest()
    finally:
        close_chain(chain)


def write_disk(vm: HypervVm, offset: int, data: bytes) -> None:
    """As the guest of a VM that is off would have; its tracking sees it."""
    with vm.opened_disks() as disks:
        disk = next(iter(disks.values()))
        disk.write_at(offset, data)
        disk.flush()


def disk_digest(vm: HypervVm) -> str:
    """Of the first disk as it is now."""
    with vm.opened_disks() as disks:
        disk = next(iter(disks.values()))
        digest = blake3()
        for offset in range(0, disk.size_bytes, 8 << 20):
            digest.update(disk.read_at(offset, min(8 << 20, disk.size_bytes - offset)))
        return digest.hexdigest()


@contextmanager
def hyperv_appliance(lab: HypervLab) -> Iterator[HypervAppliance]:
    home = Path(tempfile.mkdtemp(prefix="holdfast-hv-"))
    try:
        Repository.create(home / "repository")
        appliance = HypervAppliance(lab, home)
        appliance.register()
        yield appliance
    finally:
        shutil.rmtree(home)
