"""smbd as a child of ours, in a process group of its own with the children that it makes.

When our end comes unannounced, a guard kills the group and unmounts after. It holds the kernel's
end of the mount open until then, so that the kernel waits instead of failing. A host sees a lost
connection, instead of a broken disk, and opens its files again until we are back.
Thread model: `start`, `stop` and `tell` by one thread; `wait_ended` by another.
Source: smbd(8), smbcontrol(1) of Samba 4.17.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from appliance.base.errors import ExternalProgramError
from appliance.exports.guard import Guard
from appliance.exports.smb.samba_folder import SambaFolder

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT = {"PATH": _PATH, "LC_ALL": "C"}
_START_WITHIN_S = 20.0
_TELL_WITHIN_S = 20.0
_POLL_S = 0.01
_LAST_WORDS = 500
_LAST_THING = 'kill -s KILL -- "-$1"; fusermount -u -q -z "$2"'


class SmbdProcess:
    def __init__(self, folder: SambaFolder, host: str, port: int) -> None:
        self._folder = folder
        self.host = host
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: Guard | None = None

    @property
    def pid(self) -> int:
        """0: there is none."""
        return self._process.pid if self._process is not None else 0

    def start(self, mount: Path, held_fds: Sequence[int]) -> None:
        """Return once it answers. The configuration is there.

        Args:
            mount: where the files of its shares are, unmounted by the guard.
            held_fds: of the mount, kept open by the guard until smbd is dead.

        Raises ExternalProgramError: it is not installed, cannot listen, or ended.
        """
        try:
            with self._folder.log_path.open("ab") as said:
                self._process = subprocess.Popen(
                    [
                        *("smbd", "--foreground", "--no-process-group"),
                        f"--configfile={self._folder.config_path}",
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    env=_ENVIRONMENT,
                    start_new_session=True,
                )
        except OSError as error:
            raise ExternalProgramError(
                f"smbd cannot be started: {error.strerror} (Debian package samba)"
            ) from error
        self._guard = Guard(_LAST_THING, str(self._process.pid), str(mount), held_fds=held_fds)
        ends_s = time.monotonic() + _START_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > ends_s:
                raise self._not_served()
            time.sleep(_POLL_S)
        if self._process.poll() is not None:  # somebody else answered
            raise self._not_served()

    def tell(self, *words: str) -> None:
        """Say something to smbd and its children: reload-config, close-share NAME."""
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                ["smbcontrol", f"--configfile={self._folder.config_path}", "all", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_ENVIRONMENT,
                timeout=_TELL_WITHIN_S,
                check=False,
            )

    def wait_ended(self) -> None:
        """Return once smbd has ended, for whatever reason; it is not reaped."""
        if self._process is not None:
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)

    def stop(self) -> None:
        """End smbd, its children and the guard. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it keeps nothing that is not on the disk
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.end()  # before smbd is reaped, so it cannot kill what got its number next
        process.wait()

    def _answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        try:
            socket.create_connection((host, self.port), 1.0).close()
        except OSError:
            return False
        return True

    def _not_served(self) -> ExternalProgramError:
        said = ""
        with suppress(OSError):
            said = self._folder.log_path.read_text(errors="replace").strip()[-_LAST_WORDS:]
        self.stop()
        return ExternalProgramError(
            f"smbd does not serve {self.host} port {self.port} (does Debian's own smbd run?"
            f" systemctl disable --now smbd): {said}"
        )
