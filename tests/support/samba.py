"""A Samba server of our own on loopback, with its own folders and a port of the system's choice."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

USER = "backup"
PASSWORD = "Sh4re-and-care"
_START_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Samba:
    port: int
    folder: Path
    pid: int


@contextmanager
def samba(
    folder: Path,
    shares: Mapping[str, Path],
    *,
    encrypt: str = "default",
    dialect: str = "SMB3_11",
    smbd: str = "smbd",
) -> Iterator[Samba]:
    """Serve `shares` (name: folder) until the block ends; `encrypt` as smb.conf has it.

    `dialect`: the newest that it speaks.
    """
    port = _free_port()
    config = _configure(folder, shares, port, encrypt, dialect)
    log = (folder / "smbd.out").open("wb")
    command = [smbd, "--foreground", "--no-process-group", "--debug-stdout", "-s", str(config)]
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # smbd signals its whole group when it ends
    )
    try:
        _wait_for(process, port, folder)
        yield Samba(port=port, folder=folder, pid=process.pid)
    finally:
        process.terminate()
        process.wait(20)
        log.close()


def _configure(
    folder: Path, shares: Mapping[str, Path], port: int, encrypt: str, dialect: str
) -> Path:
    for name in ("private", "lock", "state", "cache", "pid", "ncalrpc"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    account = pwd.getpwuid(os.getuid()).pw_name
    (folder / "users.map").write_text(f"{account} = {USER}\n")
    lines = [
        "[global]",
        "workgroup = LAB",
        "server role = standalone server",
        "interfaces = 127.0.0.1",
        "bind interfaces only = yes",
        f"smb ports = {port}",
        "disable netbios = yes",
        "server min protocol = SMB3_00",
        f"server max protocol = {dialect}",
        f"smb encrypt = {encrypt}",
        "load printers = no",
        "disable spoolss = yes",
        "log level = 1",
        "kernel oplocks = no",
        "kernel share modes = no",
        f"passdb backend = smbpasswd:{folder}/private/smbpasswd",
        f"username map = {folder}/users.map",
        f"private dir = {folder}/private",
        f"lock directory = {folder}/lock",
        f"state directory = {folder}/state",
        f"cache directory = {folder}/cache",
        f"pid directory = {folder}/pid",
        f"ncalrpc dir = {folder}/ncalrpc",
    ]
    for name, path in shares.items():
        lines += [f"[{name}]", f"path = {path}", "read only = no", f"force user = {account}"]
    config = folder / "smb.conf"
    config.write_text("\n".join(lines) + "\n")
    subprocess.run(
        ["smbpasswd", "-c", str(config), "-s", "-a", account],
        input=f"{PASSWORD}\n{PASSWORD}\n".encode(),
        check=True,
        capture_output=True,
    )
    return config


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"smbd did not start: {(folder / 'smbd.out').read_text()[-2000:]}")
