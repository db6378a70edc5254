"""One QEMU program (a machine or qemu-storage-daemon): started, talked to, never left behind.

Invariants: the kernel kills the program when its keeper dies. The keeper is a thread that starts
it, pumps its serial line and stderr until both end, and reaps it; PR_SET_PDEATHSIG is bound to the
thread that forks, so this thread has to live as long as the program. A shell line checks for a
parent that died before the signal was armed. QMP and serial line are inherited socket pairs.
Thread model: any thread; `close` is idempotent and joins the keeper.
"""

from __future__ import annotations

import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import IO, Any

from lab.esx.errors import HostError
from lab.esx.qmp import Qmp, QmpError

_STDERR_BYTES_MAX = 8 * 1024
_KILL_WAIT_S = 10.0
_ORPHAN_CHECK = 'test "$PPID" = "$0" && exec "$@"'  # $0 is the expected parent


class QemuProcess:
    """`command` gets the descriptor numbers of the QMP and the serial socket and returns argv."""

    def __init__(
        self,
        command: Callable[[int, int], list[str]],
        *,
        on_serial: Callable[[bytes], None] = lambda data: None,
        on_event: Callable[[str, dict[str, Any]], None] = lambda name, data: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the program and wait for its monitor. Raises HostError with its last words."""
        self._on_serial = on_serial
        self._on_end = on_end
        self._stderr = bytearray()
        self._process: subprocess.Popen[bytes] | None = None
        self._start_error: OSError | None = None
        self._spawned, self._ended = threading.Event(), threading.Event()
        self._serial, serial_peer = socket.socketpair()
        qmp_socket, qmp_peer = socket.socketpair()
        self._keeper = threading.Thread(
            target=self._keep, args=(command, serial_peer, qmp_peer), name="lab-qemu", daemon=True
        )
        self._keeper.start()
        self._spawned.wait()
        try:
            if self._start_error is not None:
                raise HostError(f"cannot start QEMU: {self._start_error}")
            self.qmp = Qmp(qmp_socket, on_event=on_event)
        except BaseException as error:
            qmp_socket.close()
            self._kill()
            self._keeper.join()
            self._serial.close()
            if isinstance(error, QmpError):
                raise HostError(f"QEMU did not start: {self._last_words()}") from error
            raise

    @property
    def running(self) -> bool:
        return not self._ended.is_set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def end_text(self) -> str:
        """How it ended: the exit status (a negative signal number), and its last words."""
        status = self._process.poll() if self._process is not None else None
        return f"status {status}: {self._last_words()}"

    def wait(self, timeout_s: float) -> bool:
        """True once the program has ended."""
        return self._ended.wait(timeout_s)

    def send_serial(self, data: bytes) -> None:
        """Type on the serial line. Raises HostError when the machine is gone."""
        try:
            self._serial.sendall(data)
        except OSError as error:
            raise HostError(f"cannot write to the serial line: {error}") from error

    def kill(self) -> None:
        """SIGKILL, and wait. Idempotent."""
        self._kill()
        if not self._ended.wait(_KILL_WAIT_S):
            raise HostError(f"QEMU, process {self.pid}, does not die")

    def close(self) -> None:
        self.kill()
        if self._keeper is not threading.current_thread():
            self._keeper.join()
        self.qmp.close()
        self._serial.close()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()  # does nothing when the keeper has reaped it

    def _last_words(self) -> str:
        return self._stderr.decode("utf-8", "replace").strip() or "it said nothing"

    def _keep(
        self,
        command: Callable[[int, int], list[str]],
        serial_peer: socket.socket,
        qmp_peer: socket.socket,
    ) -> None:
        try:
            self._process = self._spawn(command, serial_peer, qmp_peer)
        except OSError as error:
            self._start_error = error
            self._ended.set()
            return
        finally:
            serial_peer.close()  # so that QEMU's end closing is seen as the end
            qmp_peer.close()
            self._spawned.set()
        assert self._process.stderr is not None
        try:
            with self._process.stderr as stderr:
                self._pump(stderr)
        except BaseException:
            self._process.kill()
            raise
        finally:
            self._process.wait()
            self._ended.set()
            self._on_end()

    def _spawn(
        self,
        command: Callable[[int, int], list[str]],
        serial_peer: socket.socket,
        qmp_peer: socket.socket,
    ) -> subprocess.Popen[bytes]:
        inherited = (qmp_peer.fileno(), serial_peer.fileno())
        guard = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", _ORPHAN_CHECK, str(os.getpid())]
        return subprocess.Popen(
            [*guard, *command(*inherited)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=inherited,
            start_new_session=True,
        )

    def _pump(self, stderr: IO[bytes]) -> None:
        """QEMU's stderr ends only with QEMU."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._serial, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._pump_once(key.fileobj is stderr, key.fd):
                        selector.unregister(key.fileobj)

    def _pump_once(self, is_stderr: bool, fd: int) -> bool:
        try:
            data = os.read(fd, 64 * 1024)
        except OSError:
            return False  # reset: QEMU died with our bytes unread
        if is_stderr:
            self._stderr += data
            del self._stderr[:-_STDERR_BYTES_MAX]
        elif data:
            self._on_serial(data)
        return bool(data)


def storage_daemon() -> QemuProcess:
    """A qemu-storage-daemon without nodes: the block layer for what no running machine has open."""
    return QemuProcess(
        lambda qmp_fd, _: [
            "qemu-storage-daemon",
            *("--chardev", f"socket,id=qmp0,fd={qmp_fd}"),
            *("--monitor", "chardev=qmp0"),
        ]
    )
