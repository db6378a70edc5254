"""nfs-ganesha as an NFS server on a loopback address: a server that nobody here wrote.

It insists on rpcbind, which takes port 111 of every address; so both run in a network of their
own. This program listens on the address first, then leaves its network, starts them, and passes
connections on. A line on stdin kills ganesha with SIGKILL and starts it again; the end of stdin
ends everything. Nothing is installed: the packages are unpacked beside the system.

    python -m tests.support.ganesha ADDRESS FOLDER PACKAGES-ROOT
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.debian_programs import environment, unpacked
from tests.support.holdfast_program import ROOT
from tests.support.needs import missing_reason

_PACKAGES = (
    *("nfs-ganesha", "nfs-ganesha-vfs", "libntirpc4.3", "libnfsidmap1", "libwbclient0"),
    *("liburcu8", "rpcbind", "libtirpc3", "libwrap0"),
)
_PORTS = (111, 2049, 20048)
_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
_READY_TIMEOUT_S = 60.0
_LIBRARIES = "/usr/lib/x86_64-linux-gnu"
_CONFIG = """
NFS_CORE_PARAM {{
  Plugins_Dir = "{libraries}/ganesha"; Protocols = 3; NFS_Port = 2049; MNT_Port = 20048;
  Enable_NLM = false; Enable_RQUOTA = false; mount_path_pseudo = false; Short_File_Handle = true;
}}
NFSV4 {{ Graceless = true; IdmapConf = "/run/idmapd.conf"; Only_Numeric_Owners = true; }}
DIRECTORY_SERVICES {{ DomainName = "localdomain"; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT {{
  Export_Id = 7; Path = "{folder}"; Pseudo = "/export"; Protocols = 3; Access_Type = RW;
  Squash = None; SecType = sys; Transports = TCP; FSAL {{ Name = VFS; }}
}}
"""


class Ganesha:
    """Serves a folder under its own path until the block ends."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def restart(self) -> None:
        """SIGKILL, then the same server again; returns when it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write("restart\n")
        self._process.stdin.flush()
        self.wait_ready()

    def wait_ready(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            raise RuntimeError("nfs-ganesha did not start")


def needs_ganesha() -> Path:
    """The root of its packages' files."""
    if os.geteuid() != 0:
        missing_reason("nfs-ganesha needs root")
    try:
        return unpacked(*_PACKAGES)
    except (RuntimeError, subprocess.SubprocessError) as error:
        missing_reason(f"nfs-ganesha cannot be had: {error}")


@contextlib.contextmanager
def ganesha_serving(root: Path, folder: Path, address: str) -> Iterator[Ganesha]:
    """`root` is of `needs_ganesha`."""
    command = [sys.executable, "-m", "tests.support.ganesha", address, str(folder), str(root)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        ganesha = Ganesha(process)
        ganesha.wait_ready()
        yield ganesha
    finally:
        process.communicate(timeout=30)


def _serve(address: str, folder: str, root: Path) -> None:
    listeners = {port: socket.create_server((address, port), backlog=64) for port in _PORTS}
    _enter_own_network(root)
    programs = environment(root)
    libraries = root / _LIBRARIES[1:]
    config = Path("/run/ganesha.conf")
    config.write_text(_CONFIG.format(libraries=libraries, folder=folder))
    Path("/run/idmapd.conf").write_text("[General]\nDomain = localdomain\n")
    commands = (
        [str(root / "sbin/rpcbind"), "-f", "-w"],
        [
            *(str(root / "usr/bin/ganesha.nfsd"), "-F", "-f", str(config)),
            *("-L", "/run/ganesha.log", "-p", "/run/ganesha.pid"),
        ],
    )
    quiet = subprocess.DEVNULL
    guard = ("setpriv", "--pdeathsig", "KILL")
    rpcbind = subprocess.Popen([*guard, *commands[0]], env=programs, stdout=quiet, stderr=quiet)
    _wait_port(111)
    threading.Thread(target=_forward, args=(listeners,), daemon=True).start()
    ganesha: subprocess.Popen[bytes] | None = None
    try:
        while True:
            ganesha = subprocess.Popen(
                [*guard, *commands[1]], env=programs, stdin=quiet, stdout=quiet, stderr=quiet
            )
            _wait_port(2049)
            print("ready", flush=True)
            if not sys.stdin.readline():
                return
            ganesha.kill()
            ganesha.wait()
    finally:
        for process in (ganesha, rpcbind):
            if process is not None:
                process.kill()
                process.wait()


def _enter_own_network(root: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    users = Path(tempfile.gettempdir(), f"passwd-{os.getpid()}")
    users.write_text(Path("/etc/passwd").read_text() + "_rpc:x:999:65534::/run:/usr/sbin/nologin\n")
    over = f"lowerdir={root}{_LIBRARIES}:{_LIBRARIES}"
    for command in (
        ("ip", "link", "set", "lo", "up"),
        ("mount", "--make-rprivate", "/"),
        ("mount", "--bind", str(users), "/etc/passwd"),
        ("mount", "-t", "tmpfs", "none", "/run"),
        ("mount", "-t", "overlay", "overlay", "-o", over, _LIBRARIES),
    ):
        subprocess.run(command, check=True)
    users.unlink()
    for folder in ("/run/rpcbind", "/run/ganesha"):
        Path(folder).mkdir()


def _wait_port(port: int) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _forward(listeners: dict[int, socket.socket]) -> None:
    """Sockets stay in the network they were made in; those made from now on are in ours."""
    with selectors.DefaultSelector() as selector:
        for port, listener in listeners.items():
            selector.register(listener, selectors.EVENT_READ, port)
        peers: dict[socket.socket, socket.socket] = {}
        while True:
            for key, _ in selector.select():
                connection = key.fileobj
                assert isinstance(connection, socket.socket)
                if key.data is not None:
                    client, _address = connection.accept()
                    try:
                        server = socket.create_connection(("127.0.0.1", key.data))
                    except OSError:
                        client.close()
                        continue
                    for one, other in ((client, server), (server, client)):
                        peers[one] = other
                        selector.register(one, selectors.EVENT_READ)
                elif connection in peers and not _pass_on(connection, peers[connection]):
                    for one in (connection, peers[connection]):
                        selector.unregister(one)
                        del peers[one]
                        one.close()


def _pass_on(source: socket.socket, target: socket.socket) -> bool:
    try:
        data = source.recv(1 << 20)
        target.sendall(data)
    except OSError:
        return False
    return bool(data)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
