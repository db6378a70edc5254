"""tgtd as a child of ours, and its end when ours comes unannounced.

    we ---- pipe ----> guard (sh) --- kill -9 ---> tgtd ----> file of `exports.device_files`

Killed while a host writes, we would leave a tgtd whose file answers errors, and it would tell the
host that its disk is broken. So a second child, the guard, holds the kernel's end of the mount open
(the kernel then waits instead of failing) and, once our end of its pipe closes, kills tgtd first
and unmounts after. The host sees a lost connection, and logs in again until we are
back: with the same names, as if nothing had been.

tgtd ignores SIGTERM and takes seconds to end when asked, so it is killed: it keeps nothing itself.
Thread model: `start` and `stop` by one thread; `wait_ended` by another.
Source: tgtd(8) of tgt 1.0.85.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.base.errors import ExternalProgramError
from appliance.exports.guard import Guard
from appliance.exports.iscsi.tgt_control import TgtControl

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_START_WITHIN_S = 20.0
_POLL_S = 0.005
_LAST_WORDS = 500
_LAST_THING = 'kill -KILL "$1"; fusermount -u -q -z "$2"'


class TgtProcess:
    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    @property
    def pid(self) -> int:
        """Of the running tgtd; 0: there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self, mount: Path, held_fds: Sequence[int]) -> TgtControl:
        """Return once it can be asked for targets; it listens already.

        Args:
            mount: where the files of its LUNs are, unmounted by the guard.
            held_fds: of the mount, kept open by the guard until tgtd is dead.

        Raises:
            ExternalProgramError: it is not installed, cannot listen, or ended.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="holdfast-tgt-")
        folder = Path(self._folder.name)  # short: the name of a socket has at most 107 bytes
        log_path = folder / "log"
        portal = f"portal=[{self.host}]:{self.port}" if ":" in self.host else None
        portal = portal or f"portal={self.host}:{self.port}"
        with log_path.open("wb") as said:
            try:
                self._process = subprocess.Popen(
                    ["tgtd", "--foreground", "--iscsi", portal],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env={"PATH": _PATH, "TGT_IPC_SOCKET": str(folder / "control")},
                    start_new_session=True,
                )
            except OSError as error:
                self._drop_folder()
                raise ExternalProgramError(
                    f"tgtd cannot be started: {error.strerror} (Debian package tgt)"
                ) from error
        self._guard = Guard(_LAST_THING, str(self._process.pid), str(mount), held_fds=held_fds)
        control = TgtControl(folder / "control.0")
        ends_s = time.monotonic() + _START_WITHIN_S
        while not control.answers():
            if self._process.poll() is not None or time.monotonic() > ends_s:
                raise self._not_served(log_path)
            time.sleep(_POLL_S)
        if not control.listens(self.port):  # it goes on without
            raise self._not_served(log_path)
        return control

    def _not_served(self, log_path: Path) -> ExternalProgramError:
        said = log_path.read_text(errors="replace").strip()[-_LAST_WORDS:]
        self.stop()
        return ExternalProgramError(
            f"tgtd does not serve {self.host} port {self.port} (does Debian's own tgt service run?"
            f" systemctl disable --now tgt): {said}"
        )

    def wait_ended(self) -> None:
        """Return once tgtd has ended, for whatever reason; it is not reaped."""
        if self._process is not None:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """End tgtd and the guard. Idempotent."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # the guard goes before tgtd is reaped, so it cannot kill what got its number next
            self._end_guard()
            process.wait()
        self._drop_folder()

    def _end_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.end()

    def _drop_folder(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None
