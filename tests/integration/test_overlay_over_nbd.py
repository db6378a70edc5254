"""The overlay as a guest meets it: over NBD, from QEMU, with a server that is killed."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.base.units import KIB, MIB
from tests.support.needs import needs
from tests.support.programs import guarded, run
from tests.support.serve_overlay import BASE_BYTE

ROOT = Path(__file__).resolve().parents[2]
SIZE = 32 * MIB
FLUSHED = 24 * MIB  # below: written and flushed; above: written while the server is killed
ROUNDS = 5
CELL = 24 * KIB  # many of them cross no segment, some do; the odd half is not block-aligned


class KillableServer:
    def __init__(self, folder: Path, socket_path: Path) -> None:
        socket_path.unlink(missing_ok=True)
        self.uri = f"nbd+unix:///disk?socket={socket_path}"
        module = ("-m", "tests.support.serve_overlay")
        self._process = subprocess.Popen(
            [sys.executable, *module, folder, socket_path, str(SIZE)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def qemu_io(uri: str, commands: list[str]) -> list[str]:
    arguments = [part for command in commands for part in ("-c", command)]
    return ["qemu-io", "--cache", "writeback", "-f", "raw", *arguments, uri]


@pytest.mark.integration
def test_a_killed_server_resumes_with_every_flushed_write(tmp_path: Path) -> None:
    """After kill -9 in the middle of other writes, QEMU reads back all that it had flushed."""
    needs("qemu-io", "timeout")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    cells = dict.fromkeys(range(FLUSHED // CELL), BASE_BYTE)
    for _ in range(ROUNDS):
        server = KillableServer(tmp_path / "session", tmp_path / "socket")
        try:
            commands = []
            for cell in rng.sample(sorted(cells), 60):
                value = rng.choice([0, rng.randrange(1, 256)])
                write = "write -z -u" if value == 0 else f"write -P {value}"
                commands.append(f"{write} {cell * CELL} {CELL}")
                cells[cell] = value
            run(*qemu_io(server.uri, [*commands, "flush"]))
            unflushed = [
                f"write -P {rng.randrange(256)} {rng.randrange(FLUSHED, SIZE - CELL)} {CELL}"
                for _ in range(400)
            ]
            with subprocess.Popen(
                guarded(*qemu_io(server.uri, unflushed)), stdout=subprocess.PIPE
            ) as writer:
                assert writer.stdout is not None
                for _ in range(rng.randrange(1, 200)):
                    writer.stdout.readline()
                server.kill()
                writer.stdout.read()
        finally:
            server.kill()
        server = KillableServer(tmp_path / "session", tmp_path / "socket")
        try:
            reads = [f"read -P {value} {cell * CELL} {CELL}" for cell, value in cells.items()]
            assert "verification failed" not in run(*qemu_io(server.uri, reads))
        finally:
            server.kill()
