"""A network of its own for a test: loopback only, every port free, and /run empty.

Port 111 is the one that clients ask, so what needs it runs here and meets no portmapper of the
machine. Needs root, or user namespaces.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.needs import missing_reason, needs

_SET_UP = (
    "busybox ifconfig lo 127.0.0.1 netmask 255.0.0.0 up && mount -t tmpfs none /run && "
    "echo up && exec cat"
)


@dataclass(frozen=True, slots=True)
class NetworkNamespace:
    holder: int  # a process inside

    def command(self, *words: str | Path) -> list[str]:
        """What runs `words` inside."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.holder}", "--net", "--mount", *user, *map(str, words)]

    def run(self, *words: str | Path, timeout_s: float = 120) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(*words), capture_output=True, timeout=timeout_s, check=False
        )

    def output(self, *words: str | Path, timeout_s: float = 120) -> bytes:
        """Asserts success."""
        done = self.run(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{words}: {done.stdout!r} {done.stderr!r}"
        return done.stdout


@contextmanager
def network_namespace() -> Iterator[NetworkNamespace]:
    needs("unshare", "nsenter", "busybox", "mount")
    user: Sequence[str] = [] if os.geteuid() == 0 else ["--map-root-user"]
    holder = subprocess.Popen(
        ["unshare", "--net", "--mount", *user, "sh", "-c", _SET_UP],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stderr is not None
    try:
        if holder.stdout.readline() != b"up\n":
            missing_reason(f"no network namespace: {holder.stderr.read().decode().strip()}")
        yield NetworkNamespace(holder.pid)
    finally:
        holder.stdin.close()
        holder.wait(timeout=20)
        holder.stdout.close()
        holder.stderr.close()
