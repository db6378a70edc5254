"""One QEMU process: started, talked to, stopped, and never left behind.

Invariants: the kernel kills QEMU when its keeper dies. The keeper is a thread of ours that starts
QEMU, pumps its serial line and stderr until both end, and reaps it; PR_SET_PDEATHSIG is bound to
the thread that forks, so this thread living as long as QEMU is what makes the signal right. A
shell line checks for a parent that died before the signal was armed. Serial line and QMP are
inherited socket pairs: no socket files, no ports, nothing for another process to connect to.
Thread model: any thread may use a machine; `close` is idempotent and joins the keeper.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import socket
import subprocess
import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO

from appliance.base.clock import Clock, SystemClock
from appliance.base.errors import ExternalProgramError
from appliance.sandbox.accelerator import REQUESTED, AcceleratorChoice, choose_accelerator
from appliance.sandbox.console import Console
from appliance.sandbox.errors import QmpError, SandboxError
from appliance.sandbox.network import Plug
from appliance.sandbox.qmp import QmpClient
from appliance.sandbox.spec import MachineSpec, NetworkLink, command_line
from appliance.sandbox.text_screen import TEXT_ADDRESS, TEXT_CELLS, read_text_screen

_STDERR_BYTES_MAX = 8 * 1024
_KILL_WAIT_S = 10.0
_SEND_TIMEOUT_S = 10.0
# $0 is the expected parent, the rest is the command.
_ORPHAN_CHECK = 'test "$PPID" = "$0" && exec "$@"'
# "  TCP[ESTABLISHED]  14  127.0.0.1 42013  10.0.2.15  7777  0  0" (net/slirp.c, libslirp misc.c)
_CONNECTION = re.compile(r"TCP\[(\w+)\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)")

# States that follow a completed handshake with the guest, also when it has closed again since.
_ACCEPTED = frozenset(
    {"ESTABLISHED", "CLOSE_WAIT", "FIN_WAIT_1", "FIN_WAIT_2", "CLOSING", "LAST_ACK", "TIME_WAIT"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Connection:
    """A line of QEMU's list of user-network connections that came in from the host."""

    state: str
    host_port: int
    guest_port: int


class PowerOff(StrEnum):
    """How a machine ended."""

    GRACEFUL = "graceful"  # the guest shut down when asked, or by itself
    KILLED = "killed"


class Machine:
    """Use as a context manager: entering starts QEMU, leaving kills what still runs."""

    def __init__(
        self,
        spec: MachineSpec,
        artifact_folder: Path,
        *,
        clock: Clock | None = None,
        plug: Plug | None = None,
    ) -> None:
        """Put `serial.log` into `artifact_folder`, which must exist.

        `plug`: its place in an isolated network; the machine takes it over and closes it.
        """
        self._plug = plug
        self._spec = spec
        self._clock = clock or SystemClock()
        self.acceleration = _acceleration(spec)
        self.serial_log_path = artifact_folder / "serial.log"
        self.console = Console(self.serial_log_path, self._clock)
        self.started_at_s = 0.0
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = bytearray()
        self._start_error: OSError | None = None
        self._spawned = threading.Event()
        self._ended = threading.Event()
        self._serial, self._serial_peer = socket.socketpair()
        self._serial.settimeout(_SEND_TIMEOUT_S)
        self._qmp_socket, self._qmp_peer = socket.socketpair()
        self._qmp: QmpClient | None = None
        self._keeper = threading.Thread(target=self._keep, name="sandbox-keeper", daemon=True)

    def __enter__(self) -> Machine:
        self.started_at_s = self._clock.monotonic_s()
        self._keeper.start()
        self._spawned.wait()
        try:
            if self._start_error is not None:
                raise ExternalProgramError(f"cannot start QEMU: {self._start_error}")
            self._qmp = QmpClient(self._qmp_socket)
        except QmpError as error:
            self.close()
            raise SandboxError(f"QEMU did not start: {self._last_words()}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        if self._process is None:
            raise SandboxError("the machine was not started")
        return self._process.pid

    def wait(self, timeout_s: float) -> bool:
        """Return True once QEMU has ended, False when the time is over first."""
        return self._ended.wait(timeout_s)

    def send_line(self, text: str) -> None:
        """Type a line on the serial console. Raises SandboxError when the machine is gone."""
        try:
            self._serial.sendall(text.encode() + b"\n")
        except OSError as error:
            raise SandboxError(f"cannot write to the serial line: {error}") from error

    def screenshot(self, path: Path) -> None:
        """Write what the screen shows as PNG (QEMU 7.1 and later)."""
        self._control.execute("screendump", filename=str(path.absolute()), format="png")

    def runs(self) -> bool:
        """Whether the processors are switched on, as QEMU says."""
        return bool(self._control.execute("query-status")["running"])

    def screen_lines(self) -> list[str]:
        """What the screen says in text mode, top down; empty in a graphics mode."""
        command = f"xp /{TEXT_CELLS}hx {TEXT_ADDRESS:#x}"
        return read_text_screen(
            str(self._control.execute("human-monitor-command", command_line=command))
        )

    def forwarded_port(self, guest_port: int) -> int:
        """Return the port on 127.0.0.1 that leads to a declared port of the guest."""
        return self._host_port(guest_port, self._connections())

    def guest_accepted(self, guest_port: int) -> bool:
        """True when the guest itself has accepted a connection on this forwarded port.

        The user network accepts on the host before it asks the guest, so a successful connect
        says nothing about the guest. Keep the connection open while asking.
        """
        connections = self._connections()
        host_port = self._host_port(guest_port, connections)
        return any(
            connection.state in _ACCEPTED
            and (connection.host_port, connection.guest_port) == (host_port, guest_port)
            for connection in connections
        )

    def power_off(self, timeout_s: float) -> PowerOff:
        """Press the power button, wait, and kill when the guest takes longer. Idempotent."""
        if self.running:
            with contextlib.suppress(QmpError):  # it ends by itself, or the wait finds out
                self._control.execute("system_powerdown")
            if not self.wait(timeout_s):
                self.kill()
                return PowerOff.KILLED
        return PowerOff.GRACEFUL

    def kill(self) -> None:
        """End QEMU with SIGKILL and wait for it; a flush it had not sent is lost. Idempotent."""
        if self._process is not None:
            self._process.kill()  # does nothing when the keeper has reaped it
            if not self._ended.wait(_KILL_WAIT_S):
                raise SandboxError(f"QEMU, process {self._process.pid}, does not die")

    def close(self) -> None:
        self.kill()
        if self._keeper.ident is not None:
            self._keeper.join()
        for end in (self._serial, self._serial_peer, self._qmp_socket, self._qmp_peer):
            end.close()
        if self._plug is not None:
            self._plug.close()
        self.console.close()

    @property
    def _control(self) -> QmpClient:
        if self._qmp is None:
            raise SandboxError("the machine was not started")
        return self._qmp

    def _connections(self) -> list[_Connection]:
        text = self._control.execute("human-monitor-command", command_line="info usernet")
        return [
            _Connection(state=state, host_port=int(host_port), guest_port=int(guest_port))
            for state, host_port, guest_port in _CONNECTION.findall(str(text))
        ]

    def _host_port(self, guest_port: int, connections: list[_Connection]) -> int:
        for connection in connections:
            if connection.state == "HOST_FORWARD" and connection.guest_port == guest_port:
                return connection.host_port
        raise SandboxError(f"port {guest_port} was not declared for this machine")

    def _last_words(self) -> str:
        return self._stderr.decode("utf-8", "replace").strip() or "it said nothing"

    def _keep(self) -> None:
        """The keeper thread: fork, pump, reap."""
        try:
            self._process = self._spawn()
        except OSError as error:
            self._start_error = error
            self._ended.set()
            return
        finally:
            self._serial_peer.close()  # so that QEMU's end closing is seen as the end
            self._qmp_peer.close()
            if self._plug is not None:
                self._plug.close()
            self._spawned.set()
        process = self._process
        assert process.stderr is not None
        try:
            with process.stderr as stderr:
                self._pump(stderr)  # QEMU's stderr ends only with QEMU
        except BaseException:
            process.kill()
            raise
        finally:
            process.wait()
            self.console.close()
            self._ended.set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        inherited = [self._serial_peer.fileno(), self._qmp_peer.fileno()]
        link = None
        if self._plug is not None:
            guest_fd, gateway_fd = self._plug.guest.fileno(), self._plug.gateway.fileno()
            link = NetworkLink(guest_fd=guest_fd, gateway_fd=gateway_fd)
            inherited += [guest_fd, gateway_fd]
        qemu = command_line(
            self._spec,
            self.acceleration.accelerator,
            serial_fd=inherited[0],
            qmp_fd=inherited[1],
            link=link,
        )
        guard = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _ORPHAN_CHECK, str(os.getpid())]
        return subprocess.Popen(
            [*guard, *qemu],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            start_new_session=True,  # a Ctrl-C at our terminal is ours to handle
        )

    def _pump(self, stderr: IO[bytes]) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._serial, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._pump_once(key.fileobj is stderr, key.fd):
                        selector.unregister(key.fileobj)

    def _pump_once(self, is_stderr: bool, fd: int) -> bool:
        """Return False at the end of the stream."""
        try:
            data = os.read(fd, 64 * 1024)
        except OSError:
            return False  # reset: QEMU died with our bytes unread
        if is_stderr:
            self._stderr += data
            del self._stderr[:-_STDERR_BYTES_MAX]
        else:
            self.console.feed(data)
        return bool(data)


def _acceleration(spec: MachineSpec) -> AcceleratorChoice:
    if spec.accelerator is None:
        return choose_accelerator()
    return AcceleratorChoice(accelerator=spec.accelerator, reason=REQUESTED)
