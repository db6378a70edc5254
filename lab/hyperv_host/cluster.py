"""A practice failover cluster: nodes with endpoints of their own, and one volume that they share.

`C:\\ClusterStorage\\Volume1` of every node is one folder, as a cluster shared volume is; each node
has its other volumes for itself. A machine that lies on the shared volume is a role of the cluster
and belongs to one node at a time. Moving it is a live migration: its guest goes on running, its
checkpoints and reference points go with it, and the node that it left does not know it any more.
(That Windows lets a VM move while a recovery checkpoint of it exists is not verified.)

Thread model: made, entered and left on one thread; moves may come from any.
Source: design notes on Hyper-V, section 2.3.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from lab.faults import FaultSwitches
from lab.hyperv_host.cluster_view import SHARED_VOLUMES, NodeState, Role, SharedVolume
from lab.hyperv_host.errors import HypervError, NotFoundError
from lab.hyperv_host.file_holds import FileHolds, Release
from lab.hyperv_host.practice_host import PracticeHost
from lab.hyperv_host.virtual_machine import MIGRATING, HypervVm
from lab.hyperv_host.windows_path import WindowsPath

VOLUME = SHARED_VOLUMES.joined("Volume1")


class PracticeCluster:
    """`folder` takes the volumes; `run_folder` sockets and logs, its path must be short."""

    def __init__(
        self,
        folder: Path,
        run_folder: Path,
        computers: Sequence[str] = ("HV1", "HV2"),
        *,
        faults: FaultSwitches | None = None,
        heartbeat_s: float = 5.0,
    ) -> None:
        self.name = "CLU1"
        self.faults = faults or FaultSwitches()
        self.coordinator = computers[0]
        shared = folder / "shared"
        shared.mkdir(parents=True)
        password = secrets.token_urlsafe(12)  # of a domain account
        self.hosts: dict[str, PracticeHost] = {}
        for computer in computers:
            host = PracticeHost(
                folder / computer,
                run_folder / computer,
                faults=self.faults,
                heartbeat_s=heartbeat_s,
                computer=computer,
                cluster=self,
                password=password,
            )
            mounts = host.host.volumes.place(SHARED_VOLUMES)
            mounts.mkdir()
            mounts.joinpath(VOLUME.name).symlink_to(shared)
            self.hosts[computer] = host
        self._down: set[str] = set()
        self._open = contextlib.ExitStack()

    def __enter__(self) -> PracticeCluster:
        with contextlib.ExitStack() as stack:
            for host in self.hosts.values():
                stack.enter_context(host)
            every = [host.host.site.holds for host in self.hosts.values()]
            for host, own in zip(self.hosts.values(), every, strict=True):
                host.host.use_holds(_SharedHolds(own, every))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._open.close()

    # ------------------------------------------------------------------ what its nodes tell

    def nodes(self) -> list[tuple[str, NodeState]]:
        return [
            (name, NodeState.DOWN if name in self._down else NodeState.UP) for name in self.hosts
        ]

    def roles(self) -> list[Role]:
        return [
            Role(vm_id=vm.settings.vm_id, name=vm.settings.name, owner=computer)
            for computer, host in self.hosts.items()
            for vm in host.host.vms()
            if is_role(vm)
        ]

    def volumes(self) -> list[SharedVolume]:
        return [SharedVolume(name="Cluster Disk 1", path=VOLUME, coordinator=self.coordinator)]

    # ------------------------------------------------------------------ what is done to it

    def owner(self, vm: HypervVm) -> str:
        """Raises NotFoundError."""
        for computer, host in self.hosts.items():
            if vm in host.host.vms():
                return computer
        raise NotFoundError(f"no node has '{vm.settings.name}'")

    def move(self, vm: HypervVm, to: str) -> None:
        """Migrate a machine, running or not. Raises HypervError: not all of it is shared."""
        if not is_role(vm):
            raise HypervError(f"'{vm.settings.name}' is not a role of the cluster.")
        with vm.operation():
            source = self.hosts[self.owner(vm)].host
            vm.doing = MIGRATING
            try:
                stun = vm.machine.stunned() if vm.machine is not None else contextlib.nullcontext()
                with stun:
                    source.hand_over(vm, self.hosts[to].host)
            finally:
                vm.doing = 0

    def cut_off(self, computer: str) -> None:
        """Nobody reaches the node any more; its machines run on."""
        self._down.add(computer)
        self.hosts[computer].winrm.close()


def is_role(vm: HypervVm) -> bool:
    """Whether all of the machine lies on the shared volume, on a node of a cluster."""
    paths = [vm.settings.folder, *(drive.path for drive in vm.settings.drives)]
    return all(path is not None and path.inside(SHARED_VOLUMES) for path in paths)


class _SharedHolds:
    """What a node holds of the shared volume is held against the clients of every node."""

    def __init__(self, own: FileHolds, every: Sequence[FileHolds]) -> None:
        self._own = own
        self._every = every

    def hold(self, path: WindowsPath, *, alone: bool) -> Release:
        if not path.inside(SHARED_VOLUMES):
            return self._own.hold(path, alone=alone)
        with contextlib.ExitStack() as stack:
            for holds in self._every:
                stack.callback(holds.hold(path, alone=alone))
            held = stack.pop_all()
        return held.close
