"""A whole practice Hyper-V host: WinRM and Samba in front of the machines.

Thread model: made, entered and left on one thread; it serves on its own.
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.faults import FaultSwitches
from lab.hyperv_host.cluster_view import ClusterView
from lab.hyperv_host.file_holds import SmbHolds
from lab.hyperv_host.host import HypervHost
from lab.hyperv_host.iscsi import IscsiInitiator
from lab.hyperv_host.programs import Programs
from lab.hyperv_host.samba import Samba, Share
from lab.hyperv_host.script_call import Script, ScriptHost
from lab.hyperv_host.scripts_checkpoint import checkpoint_scripts
from lab.hyperv_host.scripts_inventory import inventory_scripts
from lab.hyperv_host.scripts_machine import machine_scripts
from lab.hyperv_host.scripts_network import network_scripts
from lab.hyperv_host.scripts_screen import screen_scripts
from lab.hyperv_host.scripts_shadow import shadow_scripts
from lab.hyperv_host.scripts_storage import storage_scripts
from lab.hyperv_host.scripts_switch import switch_scripts
from lab.hyperv_host.smb_client import SmbClient
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.vm_settings import VmState
from lab.hyperv_host.wsman_server import WsmanServer

COMPUTER, USER = "HV1", "Administrator"


class PracticeHost:
    """`folder` takes the volumes, `run_folder` sockets and logs; the latter's path is short."""

    def __init__(
        self,
        folder: Path,
        run_folder: Path,
        *,
        faults: FaultSwitches | None = None,
        heartbeat_s: float = 5.0,
        computer: str = COMPUTER,
        cluster: ClusterView | None = None,
        password: str = "",
    ) -> None:
        run_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._run_folder = run_folder
        self.user, self.password = USER, password or secrets.token_urlsafe(12)
        self.host = HypervHost(
            folder,
            run_folder,
            computer=computer,
            faults=faults,
            heartbeat_s=heartbeat_s,
            cluster=cluster,
        )
        self.faults = self.host.faults
        self.iscsi = IscsiInitiator(run_folder)
        self.host.site.whole_disk = self.iscsi.serve
        self.network = SmbClient()
        self.host.volumes.network = self.network
        self._open = contextlib.ExitStack()

    def __enter__(self) -> PracticeHost:
        host = self.host
        with contextlib.ExitStack() as stack:
            shares = [
                Share(name=f"{drive}$", folder=host.volumes.folder / drive)
                for drive in host.volumes.drives
            ]
            self.samba = Samba(
                self._run_folder / "samba",
                user=self.user,
                password=self.password,
                shares=shares,
                wide_links=host.cluster is not None,
            )
            stack.callback(self.samba.close)
            stack.callback(self.iscsi.close)
            holds = SmbHolds(self.samba.port, self.user, self.password)
            stack.callback(holds.close)
            host.use_holds(holds)
            stack.callback(host.close)
            scripts = all_scripts(host, self.iscsi, self.samba, self.network)
            self.winrm = WsmanServer(
                self._run_folder,
                Programs(host.computer, ScriptHost(scripts, self.faults, host.computer)),
                computer=host.computer,
                user=self.user,
                password=self.password,
                switches=self.faults,
            )
            stack.callback(self.winrm.close)
            self.winrm.start()
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End sessions, jobs, guests, disks and Samba; no process and no mount is left."""
        self.host.jobs.stopping.set()  # who waits inside a script, too
        self.iscsi.abandon_lost()
        self.network.close()
        self._open.close()

    def describe(self) -> dict[str, Any]:
        """What a client needs to know, as JSON."""
        return {
            "computer": self.host.computer,
            "address": self.winrm.address,
            "port": self.winrm.https_port,
            "http_port": self.winrm.http_port,
            "smb_port": self.samba.port,
            "user": self.user,
            "password": self.password,
            "fingerprint": self.winrm.fingerprint,
            "vms": [_described(vm) for vm in self.host.vms()],
        }


def all_scripts(
    host: HypervHost, iscsi: IscsiInitiator, samba: Samba, network: SmbClient
) -> dict[str, Script]:
    """By name."""
    return {
        **inventory_scripts(host, iscsi, USER),
        **checkpoint_scripts(host),
        **machine_scripts(host, iscsi),
        **storage_scripts(host, iscsi, samba),
        **network_scripts(host, network),
        **shadow_scripts(host),
        **switch_scripts(host),
        **screen_scripts(host),
    }


def _described(vm: HypervVm) -> dict[str, Any]:
    machine = vm.machine
    ports = machine.forwarded_ports() if machine is not None and machine.has_network else {}
    return {
        "name": vm.settings.name,
        "id": vm.settings.vm_id,
        "power": "on" if vm.state is VmState.RUNNING else "off",
        "ports": {str(inside): outside for inside, outside in ports.items()},
    }
