"""Debian's rpcbind, started in a network of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.complaints import eventually
from tests.support.debian_programs import RPCBIND, environment, unpacked
from tests.support.holdfast_program import ROOT
from tests.support.network_namespace import NetworkNamespace


@contextmanager
def rpcbind(network: NetworkNamespace, folder: Path) -> Iterator[None]:
    root = unpacked(*RPCBIND)
    users = folder / "passwd"  # with the one that the package would have made
    users.write_text(Path("/etc/passwd").read_text() + "_rpc:x:65534:65534::/:/bin/false\n")
    start = f"mount --bind {users} /etc/passwd && exec {root}/sbin/rpcbind -f -w"
    process = subprocess.Popen(
        network.command("sh", "-c", start), env=environment(root), stderr=subprocess.PIPE
    )
    assert process.stderr is not None

    def answers() -> bool:
        assert process.poll() is None, process.stderr.read()
        return registered(network) is not None

    try:
        eventually(answers)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)
        process.stderr.close()
        network.run("umount", "/etc/passwd")


_ASK = """
import sys
from tests.support.nfs_client import PORTMAP, NfsClient
try:
    words = NfsClient(111).call(4, program=PORTMAP)
except OSError:
    sys.exit(1)
while words.u32():
    print(*[words.u32() for _ in range(4)])
"""


def registered(network: NetworkNamespace) -> set[tuple[int, ...]] | None:
    """What port 111 says is there; None: nobody answers."""
    done = subprocess.run(
        network.command(sys.executable, "-c", _ASK),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        return None
    return {tuple(map(int, line.split())) for line in done.stdout.splitlines()}
