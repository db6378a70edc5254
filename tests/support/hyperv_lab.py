"""A whole practice Hyper-V host, and the product's own client to talk to it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hyperv.checkpoints import BackupType, Level, TakenCheckpoint, read_disks, take_checkpoint
from hyperv.host_session import HostSession
from hyperv.marker import Marker
from hyperv.patience import Patience
from hyperv.script_types import CheckpointDisk
from hyperv.smb_files import SmbConnection, SmbLogin
from hyperv.vhdx.reader import DiskReader, open_disk_file
from hyperv.windows_path import shared_path
from hyperv.winrm_session import Endpoint
from lab.guests import GuestKind, build
from lab.hyperv_host.cluster import PracticeCluster
from lab.hyperv_host.practice_host import PracticeHost
from lab.hyperv_host.virtual_machine import HypervVm
from tests.support.lab_machines import wait_until
from tests.support.needs import missing_reason, needs

PATIENCE = Patience()
READY_S = 90.0
ANSWER_S = 240.0  # of a guest without KVM on a busy machine
APPLIANCE_ID = "0f0e0d0c-0b0a-4908-8706-050403020100"


@dataclass(frozen=True, slots=True)
class HypervLab:
    practice: PracticeHost
    session: HostSession
    others: tuple[PracticeHost, ...] = ()  # nodes of the same cluster

    def machine(self, vm_id: str) -> HypervVm:
        """Wherever it is."""
        every = [vm for host in (self.practice, *self.others) for vm in host.host.vms()]
        [found] = [vm for vm in every if vm.settings.vm_id == vm_id]
        return found

    def add_tiny(self, name: str, *, start: bool = True, **more: Any) -> HypervVm:
        vm = self.practice.host.add_guest(name, build(GuestKind.TINY), memory_mib=256, **more)
        if start:
            vm.start()
        return vm

    def add_uefi(self, name: str, *, secure_boot: str = "", **more: Any) -> HypervVm:
        """Of generation 2, off."""
        needs("mkfs.vfat", "mcopy")
        if not Path("/usr/share/OVMF/OVMF_CODE_4M.secboot.fd").exists():
            missing_reason("missing Debian package: ovmf")
        return self.practice.host.add_guest(
            name,
            build(GuestKind.UEFI),
            memory_mib=512,
            generation=2,
            secure_boot=secure_boot,
            **more,
        )

    def wait_ready(self, vm: HypervVm) -> None:
        wait_until(lambda: vm.heartbeat == 5, f"{vm.settings.name} does not report")

    def say(self, vm: HypervVm, line: str, answer: str) -> str:
        """Type a line on the guest's console; return the line that answers it."""
        assert vm.machine is not None
        since = vm.machine.console.mark
        vm.machine.send_line(line)
        found = vm.machine.console.wait_line(answer, since=since, timeout_s=ANSWER_S)
        assert found is not None, f"no answer to {line!r}"
        return found.string

    def marker(self) -> Marker:
        return Marker(appliance_id=APPLIANCE_ID, run_id=f"run-{uuid.uuid4().hex[:8]}")

    def take(self, vm: HypervVm, *levels: Level) -> TakenCheckpoint:
        return take_checkpoint(
            self.session,
            vm.settings.vm_id,
            self.marker(),
            levels=levels or (Level.APPLICATION,),
            backup_type=BackupType.COPY,
            patience=PATIENCE,
        )

    def disk(self, taken: TakenCheckpoint) -> CheckpointDisk:
        return read_disks(self.session, taken.id, PATIENCE).disks[0]

    @contextmanager
    def reader(self, disk: CheckpointDisk) -> Iterator[DiskReader]:
        """The frozen disk over SMB, with the product's VHDX reader."""
        with contextlib.ExitStack() as stack:
            connection = SmbConnection(self.smb_login())
            stack.callback(connection.close)
            paths = [file.path for file in disk.chain]

            def find_parent(reference: object) -> object:
                return connection.open_file(shared_path(paths.pop(0)))

            first = connection.open_file(shared_path(paths.pop(0)))
            yield open_disk_file(first, find_parent)  # type: ignore[arg-type]

    def smb_login(self) -> SmbLogin:
        password = self.practice.password
        return SmbLogin(
            address="127.0.0.1",
            port=self.practice.samba.port,
            user=self.practice.user,
            password=lambda: password,
        )


@contextmanager
def hyperv_lab(folder: Path) -> Iterator[HypervLab]:
    """`folder` takes the volumes. Skips when a program is missing."""
    needs("smbd", "pdbedit", "setpriv", "qemu-system-x86_64", "qemu-img")
    run_folder = Path(tempfile.mkdtemp(prefix="hv-"))
    try:
        with (
            PracticeHost(folder, run_folder, heartbeat_s=0.5) as practice,
            session_with(practice) as session,
        ):
            yield HypervLab(practice, session)
    finally:
        shutil.rmtree(run_folder)


@contextmanager
def hyperv_cluster(folder: Path) -> Iterator[tuple[PracticeCluster, HypervLab]]:
    """As `hyperv_lab`, of two nodes; the lab is seen from the first."""
    if not any(Path("/usr/lib").glob("*/samba/vfs/widelinks.so")):
        missing_reason("missing Debian package: samba-vfs-modules")
    needs("smbd", "pdbedit", "setpriv", "qemu-system-x86_64", "qemu-img")
    run_folder = Path(tempfile.mkdtemp(prefix="hv-"))
    try:
        with PracticeCluster(folder, run_folder, heartbeat_s=0.5) as cluster:
            first, *others = cluster.hosts.values()
            with session_with(first) as session:
                yield cluster, HypervLab(first, session, tuple(others))
    finally:
        shutil.rmtree(run_folder)


@contextmanager
def session_with(practice: PracticeHost) -> Iterator[HostSession]:
    password = practice.password
    endpoint = Endpoint(
        address="127.0.0.1",
        port=practice.winrm.https_port,
        user=practice.user,
        fingerprint_sha256=practice.winrm.fingerprint,
        password=lambda: password,
    )
    session = HostSession(endpoint)
    try:
        yield session
    finally:
        session.close()
