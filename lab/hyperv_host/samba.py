"""A Samba of the practice Hyper-V host: its own process, folders and account, on loopback.

Shares are the administrative ones (`C$`, `D$`, …) and those that are added; the one account is the
host's administrator. Nothing of an installed Samba is read or written.

Invariants: the kernel kills smbd when its keeper, a thread of this process, is gone; `close` leaves
no process and no file. Thread model: any thread, calls are serialised.
Source: smb.conf(5) of Samba 4.17; design notes on Hyper-V, section 6.
"""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from lab.hyperv_host.errors import HypervError

_START_TRIES = 3
_START_S = 20.0
_STOP_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    name: str
    folder: Path
    writable: bool = True


class Samba:
    def __init__(
        self,
        folder: Path,
        *,
        user: str,
        password: str,
        shares: list[Share],
        wide_links: bool = False,
    ) -> None:
        """Start smbd; `folder` is made. Raises HypervError: it is not installed, or fails.

        `wide_links`: links lead out of the shares, as to a cluster shared volume.
        """
        self._wide_links = wide_links
        if shutil.which("smbd") is None or shutil.which("pdbedit") is None:
            raise HypervError("the Debian package samba is not installed")
        self._folder = folder
        self._shares = {share.name.lower(): share for share in shares}
        self._lock = threading.Lock()
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("state", "private"):
            folder.joinpath(name).mkdir(parents=True, mode=0o700)
        folder.joinpath("users").write_text(f"{getpass.getuser()} = {user}\n")
        for attempt in range(_START_TRIES):
            self.port = _free_port()
            self._write_config()
            if not attempt:
                self._add_account(password)
            if self._start():
                return
        self.close()
        raise HypervError(f"smbd did not start: {self._log_end()}")

    def add(self, share: Share) -> None:
        with self._lock:
            self._shares[share.name.lower()] = share
            self._reload()

    def remove(self, name: str) -> None:
        with self._lock:
            self._shares.pop(name.lower(), None)
            self._reload()

    def close(self) -> None:
        """End smbd and its children. Idempotent."""
        if self._process is None:
            return
        self._end.set()
        self._keeper.join()
        self._process = None

    def _start(self) -> bool:
        self._end, started = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, args=(started,), name="lab-samba")
        self._keeper.start()
        started.wait()
        deadline = time.monotonic() + _START_S
        while self._process is not None and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return True
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        self._end.set()
        self._keeper.join()
        return False

    def _keep(self, started: threading.Event) -> None:
        """The parent's death signal is bound to the thread that forks, so it waits here."""
        command = ["setpriv", "--pdeathsig", "KILL", "smbd", "--foreground", "--no-process-group"]
        try:
            with self._folder.joinpath("smbd.log").open("ab") as log:
                self._process = subprocess.Popen(
                    [*command, f"--configfile={self._folder / 'smb.conf'}"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        finally:
            started.set()
        process = self._process
        while process.poll() is None and not self._end.wait(0.2):
            pass
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _add_account(self, password: str) -> None:
        words = ["pdbedit", f"--configfile={self._folder / 'smb.conf'}", "-a", "-t"]
        done = subprocess.run(
            [*words, "-u", getpass.getuser()],
            input=f"{password}\n{password}\n".encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise HypervError(f"pdbedit failed: {done.stderr.decode(errors='replace').strip()}")

    def _reload(self) -> None:
        self._write_config()
        if self._process is not None:
            self._process.send_signal(signal.SIGHUP)

    def _write_config(self) -> None:
        state = self._folder / "state"
        settings = {
            "server role": "standalone server",
            "netbios name": "HV",
            "disable netbios": "yes",
            "interfaces": "127.0.0.1/8",
            "bind interfaces only": "yes",
            "smb ports": str(self.port),
            "server min protocol": "SMB2_10",
            "server signing": "mandatory",
            "map to guest": "never",
            "passdb backend": f"tdbsam:{self._folder / 'private' / 'passdb.tdb'}",
            "username map": str(self._folder / "users"),
            "private dir": str(self._folder / "private"),
            **{f"{kind} directory": str(state) for kind in ("lock", "state", "cache", "pid")},
            "ncalrpc dir": str(state / "ncalrpc"),
            "log file": str(self._folder / "smbd.log"),
            "max log size": "1000",
            "load printers": "no",
            "disable spoolss": "yes",
            "kernel oplocks": "no",
            "oplocks": "no",
            "posix locking": "no",
            "ea support": "no",
            "store dos attributes": "no",
            "map archive": "no",
            "strict sync": "yes",
        }
        if self._wide_links:
            settings |= {"allow insecure wide links": "yes", "wide links": "yes"}
        lines = ["[global]", *(f"  {name} = {value}" for name, value in settings.items())]
        for share in self._shares.values():
            lines += [
                f"[{share.name}]",
                f"  path = {share.folder}",
                f"  read only = {'no' if share.writable else 'yes'}",
                f"  valid users = {getpass.getuser()}",
            ]
        target = self._folder / "smb.conf"
        temporary = target.with_suffix(".new")
        temporary.write_text("\n".join(lines) + "\n")
        temporary.replace(target)

    def _log_end(self) -> str:
        try:
            return self._folder.joinpath("smbd.log").read_text(errors="replace")[-500:].strip()
        except OSError:
            return "it left no log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
