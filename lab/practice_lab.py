"""A whole practice lab in this process: vCenter, two hosts, two datastores, and running guests.

`lab up` runs one in the background; the demo and slow tests may run one in theirs.
Thread model: made, entered and left on one thread; it serves on its own.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.control_socket import ControlServer
from lab.data_plane.data_plane import DataPlane
from lab.esx.datastore import Datastores, LabDatastore
from lab.fault_control import control as control_faults
from lab.guest_files import write_guest
from lab.guests import GuestKind, build
from lab.vcenter.inventory import Inventory, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.local_call import call_method
from lab.vcenter.virtual_machine import VirtualMachine
from lab.vcenter.virtual_machine_setup import give_library

_HOSTS = ("127.0.1.1", "127.0.1.2")  # by address, as hosts are added that no DNS knows
_DATASTORES = ("datastore1", "datastore2")


@dataclass(frozen=True, slots=True)
class GuestShape:
    memory_mib: int
    forwarded_ports: tuple[int, ...]


_SHAPES = {
    GuestKind.TINY: GuestShape(256, (8080, 7777)),
    GuestKind.DEBIAN: GuestShape(512, (80,)),
}


class PracticeLab:
    """`run_folder` takes sockets and logs; its path must be short."""

    def __init__(self, datastores_folder: Path, run_folder: Path, guests: Sequence[str]) -> None:
        self.datastores = Datastores()
        for name in _DATASTORES:
            folder = datastores_folder / name
            folder.mkdir(parents=True, exist_ok=True)
            self.datastores.add(LabDatastore(name, folder))
        self.run_folder = run_folder
        self.vcenter = LabVcenter(password=secrets.token_urlsafe(12))
        self.inventory: Inventory = build_inventory(
            self.vcenter, hosts=_HOSTS, stores=self.datastores.list()
        )
        self.library = give_library(self.inventory, run_folder / "vm")
        self.data_plane = DataPlane(self.vcenter, self.library.site)
        for host in self.inventory.hosts:
            self.data_plane.serve_host(host)
        self._guests = [GuestKind(name) for name in guests]

    def __enter__(self) -> PracticeLab:
        self.vcenter.start()
        try:
            for kind in self._guests:
                self.add_guest(kind, str(kind))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every guest and the vCenter. Idempotent."""
        self.vcenter.close()
        self.library.close()

    def add_guest(self, kind: GuestKind, name: str) -> VirtualMachine:
        """Copy a guest's image into the first datastore, register it and power it on."""
        shape = _SHAPES[kind]
        path = write_guest(
            self.datastores,
            self.datastores.list()[0],
            build(kind),
            name,
            network=self.inventory.network.name,
            memory_mib=shape.memory_mib,
            forwarded_ports=shape.forwarded_ports,
        )
        folder, pool = self.inventory.datacenter.vm_folder, self.inventory.pool
        host = self.inventory.hosts[0]
        ref = call_method(
            self.vcenter, folder, "RegisterVM_Task", str(path), name, False, pool.ref, host.ref
        )
        machine = self.vcenter.registry.resolve(ref, VirtualMachine)
        call_method(self.vcenter, machine, "PowerOnVM_Task", None)
        return machine

    def add_commands(self, control: ControlServer) -> None:
        """Offer the lab's own commands on the control socket: `fault`, see `lab.fault_control`."""
        switches = self.vcenter.switches
        control.add("fault", lambda command: control_faults(switches, command))

    def describe(self) -> dict[str, Any]:
        vcenter = self.vcenter
        return {
            "vcenter": {
                "url": vcenter.url,
                "address": vcenter.address,
                "port": vcenter.port,
                "user": vcenter.user,
                "password": vcenter.password,
                "fingerprint": vcenter.fingerprint,
            },
            "datacenter": self.inventory.datacenter.name,
            "hosts": [host.name for host in self.inventory.hosts],
            "datastores": [store.name for store in self.inventory.datastores],
            "vms": [
                {
                    "name": machine.name,
                    "moref": machine.moid,
                    "power": str(machine.get("runtime").powerState),
                }
                for machine in vcenter.registry.all(VirtualMachine)
            ],
        }
