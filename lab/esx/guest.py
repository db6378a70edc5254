"""What a running guest says of itself: readiness, heartbeat, and its consent to a freeze.

A lab guest prints `HOLDFAST-READY <kind> <boot id>` on its serial line when its services are up;
that stands for VMware Tools reporting. While a port is forwarded to the guest, the heartbeat asks
it over TCP and takes any byte as an answer, so that a hung guest turns red; without one it stays
green while the processors run. `freeze` and `thaw` are console commands of the guest that stop and
let go writes to its file system (`fsfreeze`), which is what quiescing does.

Thread model: `hear` and `restarted` come from QEMU's threads, the watch has its own, `close` joins
it; everything else from any thread.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

from lab.esx.errors import HostError
from lab.esx.running_machine import RunningMachine
from lab.esx.vm_state import GuestInfo, Heartbeat

GUEST_ADDRESS = "10.0.2.15"  # what QEMU's user network gives the first adapter
_READY = re.compile(r"HOLDFAST-READY (\w{1,32}) ")
_PROBE_TIMEOUT_S = 10.0
_FREEZE_TIMEOUT_S = 20.0


class QuiesceError(HostError):
    """The guest did not freeze its file systems."""

    fault = "FilesystemQuiesceFault"


class Guest:
    """Of one run of a machine; `changed` is called whenever `info` is another one."""

    def __init__(self, changed: Callable[[], None], *, silent: bool, heartbeat_s: float) -> None:
        self._changed = changed
        self._silent = silent
        self._interval_s = heartbeat_s
        self._info = GuestInfo()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._machine: RunningMachine | None = None
        self._watch = threading.Thread(target=self._beat, name="lab-heartbeat", daemon=True)

    @property
    def info(self) -> GuestInfo:
        return self._info

    def start(self, machine: RunningMachine) -> None:
        self._machine = machine
        self._watch.start()

    def hear(self, line: str) -> None:
        """A line of the serial console."""
        match = _READY.search(line)
        if match is None or self._silent:
            return
        self._set(
            GuestInfo(
                tools_running=True,
                heartbeat=Heartbeat.GREEN,
                host_name=f"holdfast-{match[1]}",
                ip_address=GUEST_ADDRESS if self._has_network() else "",
            )
        )

    def restarted(self) -> None:
        """The guest was reset: what it said no longer holds."""
        self._set(GuestInfo())

    def freeze(self) -> None:
        """Raises QuiesceError when the guest does not say that it froze."""
        machine = self._machine
        assert machine is not None
        mark = machine.console.mark
        machine.send_line("freeze")
        if machine.console.wait_line("^FROZEN", since=mark, timeout_s=_FREEZE_TIMEOUT_S) is None:
            with contextlib.suppress(HostError):
                machine.send_line("thaw")
            raise QuiesceError("the guest did not freeze its file systems in time")

    def thaw(self) -> None:
        """Raises QuiesceError when the guest does not come back."""
        machine = self._machine
        assert machine is not None
        mark = machine.console.mark
        machine.send_line("thaw")
        if machine.console.wait_line("^THAWED", since=mark, timeout_s=_FREEZE_TIMEOUT_S) is None:
            raise QuiesceError("the guest did not thaw its file systems in time")

    def close(self) -> None:
        self._ended.set()
        if self._watch.ident is not None and self._watch is not threading.current_thread():
            self._watch.join()

    def _has_network(self) -> bool:
        return self._machine is not None and self._machine.has_network

    def _set(self, info: GuestInfo) -> None:
        with self._lock:
            same = info == self._info
            self._info = info
        if not same:
            self._changed()

    def _beat(self) -> None:
        while not self._ended.wait(self._interval_s):
            before = self._info
            if not before.tools_running:
                continue
            beat = Heartbeat.GREEN if self._answers() else Heartbeat.RED
            if self._info is before and not self._ended.is_set():
                self._set(replace(before, heartbeat=beat))

    def _answers(self) -> bool:
        assert self._machine is not None
        try:
            ports = self._machine.forwarded_ports()
            if not ports:
                return bool(self._machine.qmp.execute("query-status")["running"])
            return any(_takes_requests(port) for port in ports.values())
        except HostError:
            return False


def _takes_requests(port: int) -> bool:
    """Whether a service of the guest behind this port says anything; not every guest has all."""
    try:
        with socket.create_connection(("127.0.0.1", port), _PROBE_TIMEOUT_S) as connection:
            connection.settimeout(_PROBE_TIMEOUT_S)
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return bool(connection.recv(1))
    except OSError:
        return False
