"""A whole practice lab in this process: vCenter, two hosts, two datastores, and running guests.

With `hyperv`, a Hyper-V host beside them, with guests of its own (`hyperv-NAME`) and the same
fault switches.

One machine of the lab is the appliance: its guest is this very machine, and disks that are
hot-added to it appear below `device_root`. `lab up` runs a lab in the background; the demo and slow
tests may run one in theirs.

Thread model: made, entered and left on one thread; it serves on its own.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lab.control_socket import ControlServer
from lab.data_plane.data_plane import DataPlane
from lab.esx.datastore import LabDatastore
from lab.esx.running_machine import RunningMachine
from lab.fault_control import control as control_faults
from lab.guests import GuestKind, build
from lab.hyperv_host.practice_host import PracticeHost
from lab.vcenter.inventory import build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.local_call import call_method
from lab.vcenter.virtual_machine_engine import EngineMachine
from lab.vcenter.virtual_machine_setup import add_appliance, add_guest, give_library

APPLIANCE = "holdfast"
_CONSOLE_S = 50.0  # less than a client of the control socket waits
_DATASTORES = ("datastore1", "datastore2")
_HOSTS = ("127.0.1.1", "127.0.1.2")  # names that clients can reach


@dataclass(frozen=True, slots=True)
class GuestShape:
    memory_mib: int
    forwarded_ports: tuple[int, ...]


_SHAPES = {
    GuestKind.TINY: GuestShape(256, (8080, 7777)),
    GuestKind.DEBIAN: GuestShape(512, (80,)),
    GuestKind.UEFI: GuestShape(512, (8080, 7777)),
}


class PracticeLab:
    """`run_folder` takes sockets and logs; its path must be short."""

    def __init__(
        self,
        datastores_folder: Path,
        run_folder: Path,
        guests: Sequence[GuestKind],
        hyperv_guests: Sequence[GuestKind] | None = None,
    ) -> None:
        """`hyperv_guests`: of a Hyper-V host; None: there is no such host."""
        stores = []
        for name in _DATASTORES:
            folder = datastores_folder / name
            folder.mkdir(parents=True, exist_ok=True)
            stores.append(LabDatastore(name, folder))
        self.device_root = run_folder / "devices"
        self.vcenter = LabVcenter(password=secrets.token_urlsafe(12))
        self.inventory = build_inventory(self.vcenter, hosts=_HOSTS, stores=stores)
        self.library = give_library(self.inventory, run_folder / "vm")
        self.data_plane = DataPlane(self.vcenter, self.library.site)
        self._guests = list(guests)
        self._hyperv_guests = list(hyperv_guests or ())
        self.hyperv: PracticeHost | None = None
        if hyperv_guests is not None:
            self.hyperv = PracticeHost(
                datastores_folder / "hyperv", run_folder / "hv", faults=self.vcenter.switches
            )
        self._open = contextlib.ExitStack()

    def __enter__(self) -> PracticeLab:
        with contextlib.ExitStack() as stack:
            stack.callback(self.library.close)
            stack.enter_context(self.vcenter)
            for host in self.inventory.hosts:
                self.data_plane.serve_host(host)
            self.appliance = add_appliance(self.inventory, APPLIANCE, self.device_root)
            if self.hyperv is not None:
                stack.enter_context(self.hyperv)
            for kind in self._guests:
                self.add_guest(kind, str(kind))
            for kind in self._hyperv_guests:
                self._add_hyperv_guest(kind)
            self._open = stack.pop_all()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End the vCenter, its tasks and every guest; give back loop devices."""
        self._open.close()

    def add_guest(self, kind: GuestKind, name: str) -> EngineMachine:
        """Copy a guest's image into the first datastore and power the machine on."""
        shape = _SHAPES[kind]
        machine = add_guest(
            self.inventory,
            name,
            build(kind),
            memory_mib=shape.memory_mib,
            forward=shape.forwarded_ports,
        )
        call_method(self.vcenter, machine, "PowerOnVM_Task", None)
        return machine

    def _add_hyperv_guest(self, kind: GuestKind) -> None:
        assert self.hyperv is not None
        name, memory_mib = f"hyperv-{kind}", _SHAPES[kind].memory_mib
        generation = 2 if kind is GuestKind.UEFI else 1
        self.hyperv.host.add_guest(
            name, build(kind), memory_mib=memory_mib, generation=generation
        ).start()

    def add_commands(self, control: ControlServer) -> None:
        """Offer the lab's own commands on the control socket.

        `fault`, see `lab.fault_control`; `console`: type a line on a guest's serial console and
        wait for an answer (`vm`, `line`, `expect`, a pattern, `timeout_s`).
        """
        switches = self.vcenter.switches
        control.add("fault", lambda command: control_faults(switches, command))
        control.add("console", self._console)

    def _console(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ValueError: no such running guest, or no answer in time."""
        name = str(command["vm"])
        running = self._running(name)
        if running is None:
            raise ValueError(f"no guest named {name!r} runs")
        since = running.console.mark
        running.send_line(str(command["line"]))
        limit_s = float(command.get("timeout_s", _CONSOLE_S))
        answer = running.console.wait_line(
            str(command["expect"]), since=since, timeout_s=min(limit_s, _CONSOLE_S)
        )
        if answer is None:
            raise ValueError(f"{name!r} did not answer {command['line']!r}")
        return {"answer": answer.string}

    def _running(self, name: str) -> RunningMachine | None:
        for one in self.vcenter.registry.all(EngineMachine):
            if one.name == name:
                return one.engine.machine
        for vm in self.hyperv.host.vms() if self.hyperv else ():
            if vm.settings.name == name:
                return vm.machine
        return None

    def describe(self) -> dict[str, Any]:
        """What a client needs to know, as JSON."""
        vcenter = self.vcenter
        hyperv = {"hyperv": self.hyperv.describe()} if self.hyperv is not None else {}
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
            "appliance": {"name": APPLIANCE, "device_root": str(self.device_root)},
            "vms": [_described(one) for one in vcenter.registry.all(EngineMachine)],
            **hyperv,
        }


def _described(machine: EngineMachine) -> dict[str, Any]:
    running = machine.engine.machine
    ports = running.forwarded_ports() if running is not None and machine.engine.on else {}
    return {
        "name": machine.name,
        "moref": machine.moid,
        "power": str(machine.get("runtime").powerState),
        "ports": {str(inside): outside for inside, outside in ports.items()},
    }
