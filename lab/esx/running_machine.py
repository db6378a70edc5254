"""A guest's QEMU as every practice hypervisor drives it: power, serial console, forwarded ports.

Place: between `qemu_process` and the machines of a hypervisor, which know what a configuration
means. Emulated (TCG), because a practice host is mostly a virtual machine itself.

Invariants: QEMU stays after the guest has shut down, so that its disks can be asked; it dies with
its keeper. Thread model: any thread; callbacks come on QEMU's own threads and must not block.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lab.esx.console import Console
from lab.esx.errors import HostError
from lab.esx.qemu_process import QemuProcess
from lab.esx.qmp import QmpError

_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)")


class RunningMachine:
    """Starts stopped; `run` lets the guest go."""

    has_network: bool

    def __init__(
        self,
        command: Callable[[int, int], list[str]],
        folder: Path,
        *,
        on_line: Callable[[str], None],
        on_event: Callable[[str, dict[str, Any]], None],
        on_end: Callable[[], None],
    ) -> None:
        """`command` as QemuProcess takes it; `folder` takes the serial log."""
        self.console = Console(folder / "serial.log", on_line)
        try:
            self._process = QemuProcess(
                command, on_serial=self.console.feed, on_event=on_event, on_end=on_end
            )
        except HostError:
            self.console.close()
            raise
        self.qmp = self._process.qmp

    @property
    def running(self) -> bool:
        return self._process.running

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def end_text(self) -> str:
        return self._process.end_text

    def run(self) -> None:
        self.qmp.execute("cont")

    def stop(self) -> None:
        """Freeze the processors; what the guest had written is with QEMU."""
        self.qmp.execute("stop")

    @contextmanager
    def stunned(self) -> Iterator[None]:
        """The guest stands still for the block: nothing is being written."""
        self.stop()
        try:
            yield
        finally:
            with suppress(QmpError):  # it shut itself down just before
                self.run()

    def send_line(self, text: str) -> None:
        self._process.send_serial(text.encode() + b"\n")

    def press_power_button(self) -> None:
        self.qmp.execute("system_powerdown")

    def reset(self) -> None:
        self.qmp.execute("system_reset")

    def screenshot(self, path: Path) -> None:
        """Write what the screen shows as PNG."""
        self.qmp.execute("screendump", filename=str(path), format="png")

    def forwarded_ports(self) -> dict[int, int]:
        """Ports of 127.0.0.1 by the guest's port they lead to."""
        text = self.qmp.execute("human-monitor-command", command_line="info usernet")
        return {int(guest): int(host) for host, guest in _FORWARD.findall(str(text))}

    def end(self) -> None:
        """Let QEMU flush its disks and end; kill it when it does not."""
        if self.running:
            try:
                self.qmp.execute("quit")
                self._process.wait(10.0)
            except HostError:
                pass  # killed below
        self.close()

    def close(self) -> None:
        """Kill what still runs. Idempotent."""
        self._process.close()
        self.console.close()


def machine_arguments(
    qmp_fd: int, serial_fd: int, *, memory_mib: int, cpus: int, kind: str = "pc"
) -> list[str]:
    """The head of a QEMU command: a PC without devices, its monitor and serial line."""
    return [
        *("qemu-system-x86_64", "-S", "-no-shutdown", "-nodefaults", "-no-user-config"),
        *("-display", "none", "-name", "holdfast-lab", "-machine", kind, "-accel", "tcg"),
        *("-cpu", "max,la57=off", "-m", str(memory_mib), "-smp", str(cpus)),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny"),
        *("-chardev", f"socket,id=serial0,fd={serial_fd}", "-serial", "chardev:serial0"),
        *("-chardev", f"socket,id=qmp0,fd={qmp_fd}", "-mon", "chardev=qmp0,mode=control"),
    ]
