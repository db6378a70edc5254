"""Clients and a portmapper that nobody here wrote: libnfs, QEMU's nfs driver, and rpcbind.

They ask port 111, so each test has a network of its own.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.complaints import eventually
from tests.support.debian_programs import RPCBIND, environment, unpacked
from tests.support.holdfast_program import ROOT, command, run, run_json
from tests.support.holdfast_program import environment as product_environment
from tests.support.needs import needs
from tests.support.network_namespace import NetworkNamespace, network_namespace

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
MIB = 1 << 20
CONTENT = random.Random(2).randbytes(3 * MIB) + bytes(5 * MIB)


@pytest.fixture(scope="module")
def network() -> Iterator[NetworkNamespace]:
    with network_namespace() as made:
        yield made


@pytest.fixture
def point(tmp_path: Path) -> str:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(CONTENT)
    run(tmp_path, "repo", "init")
    return str(run_json(tmp_path, "backup", "image", "--vm", "web", disk)["point_id"])


@contextmanager
def export(
    network: NetworkNamespace, home: Path, point: str, *options: str
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    process = subprocess.Popen(
        network.command(*command("export", "nfs", point, *options, "--json")),
        env=product_environment(home),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        text = ""
        for line in process.stdout:
            text += line
            if line.startswith("}"):
                break
        yield process, json.loads(text)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def test_libnfs_lists_reads_writes_and_says_who_exports(
    tmp_path: Path, network: NetworkNamespace, point: str
) -> None:
    """nfs-ls, nfs-cat and nfs-cp find everything through port 111."""
    needs("nfs-ls", "nfs-cat", "nfs-cp")
    with export(network, tmp_path, point, "--writable"):
        uri = f"nfs://127.0.0.1/{point}"
        assert b"disk-0.raw" in network.output("nfs-ls", uri)
        assert point.encode() in network.output("nfs-ls", "-D", "nfs://127.0.0.1")
        assert network.output("nfs-cat", f"{uri}/disk-0.raw") == CONTENT
        local = tmp_path / "local"
        local.write_bytes(os.urandom(2 * MIB + 7))
        network.output("nfs-cp", local, f"{uri}/remote")
        assert network.output("nfs-cat", f"{uri}/remote") == local.read_bytes()


def test_qemu_reads_writes_flushes_and_zeroes(
    tmp_path: Path, network: NetworkNamespace, point: str
) -> None:
    """A disk behind nfs:// follows a bytearray through random requests, and compares equal."""
    needs("qemu-img", "qemu-io")
    rng = random.Random(random.randrange(1 << 32))
    model = bytearray(CONTENT)
    words = []
    for number in range(120):
        offset = rng.randrange(len(model) // 512) * 512
        length = min(rng.choice((512, 4096, 65536, MIB)), len(model) - offset)
        kind = rng.choice(("write", "write", "write", "zero", "flush", "read"))
        if kind == "write":
            pattern = number % 255 + 1
            words += ["-c", f"write -P {pattern} {offset} {length}"]
            model[offset : offset + length] = bytes([pattern]) * length
        elif kind == "zero":
            words += ["-c", f"write -z {offset} {length}"]
            model[offset : offset + length] = bytes(length)
        else:
            words += ["-c", f"read {offset} {length}" if kind == "read" else "flush"]
    with export(network, tmp_path, point, "--writable"):
        uri = f"nfs://127.0.0.1/{point}/disk-0.raw"
        said = network.output("qemu-io", "-f", "raw", *words, uri)
        assert b"failed" not in said, said
        network.output("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == model
        created = f"nfs://127.0.0.1/{point}/new.qcow2"
        network.output("qemu-img", "create", "-f", "qcow2", created, "64M")
        network.output("qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", created)
        network.output("qemu-io", "-f", "qcow2", "-c", "read -P 7 1M 1M", created)
        network.output("qemu-img", "check", created)


def test_qemu_goes_on_when_the_server_is_killed(
    tmp_path: Path, network: NetworkNamespace, point: str
) -> None:
    """kill -9 and a restart between two writes: QEMU reconnects by itself, and everything it was
    told is written is there, though it never asked for a flush."""
    needs("qemu-io")
    uri = f"nfs://127.0.0.1/{point}/disk-0.raw"
    model = bytearray(CONTENT)
    with (
        export(network, tmp_path, point, "--writable") as (server, _),
        subprocess.Popen(
            network.command("qemu-io", "-f", "raw", "-t", "writeback", uri),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None

        def write(number: int) -> None:
            offset, length = number * 65536, 65536
            model[offset : offset + length] = bytes([number]) * length
            client.stdin.write(f"write -P {number} {offset} {length}\n")
            client.stdin.flush()

        def answered() -> None:
            for line in client.stdout:
                assert "failed" not in line
                if "wrote" in line:
                    return
            raise AssertionError("qemu-io ended")

        for number in range(1, 20):
            write(number)
            answered()
        server.kill()
        server.wait()
        write(20)
        with export(network, tmp_path, point, "--writable"):
            answered()
            for number in range(21, 30):
                write(number)
                answered()
            client.stdin.write("quit\n")
            client.stdin.close()
            client.wait(timeout=60)
            found = network.output("nfs-cat", uri)
    assert found == model


@contextmanager
def rpcbind(network: NetworkNamespace, folder: Path) -> Iterator[None]:
    root = unpacked(*RPCBIND)
    users = folder / "passwd"  # with the one that the package would have made
    users.write_text(Path("/etc/passwd").read_text() + "_rpc:x:65534:65534::/:/bin/false\n")
    start = f"mount --bind {users} /etc/passwd && exec {root}/sbin/rpcbind -f -w"
    process = subprocess.Popen(network.command("sh", "-c", start), env=environment(root))
    try:
        eventually(lambda: registered(network) is not None)
        yield
    finally:
        process.terminate()
        process.wait(timeout=20)


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


def test_where_rpcbind_has_port_111_the_server_registers_and_leaves_again(
    tmp_path: Path, network: NetworkNamespace, point: str
) -> None:
    """Clients find us through it; a second start replaces what a killed one left; nothing stays."""
    needs("apt-get", "dpkg-deb", "nfs-cat")
    ours = {(100003, 3, 6), (100005, 3, 6)}

    def entries() -> set[tuple[int, ...]]:
        return {each[:3] for each in registered(network) or set()} & ours

    with rpcbind(network, tmp_path):
        assert entries() == set()
        with export(network, tmp_path, point) as (process, document):
            assert entries() == ours
            found = registered(network)
            assert found is not None
            assert (100003, 3, 6, document["port"]) in found
            uri = f"nfs://127.0.0.1/{point}/disk-0.raw"
            assert network.output("nfs-cat", uri) == CONTENT
            process.kill()
            process.wait()
        assert entries() == ours
        with export(network, tmp_path, point, "--port", "0") as (_, document):
            found = registered(network)
            assert found is not None
            assert (100003, 3, 6, document["port"]) in found
            assert network.output("nfs-cat", uri) == CONTENT
        assert entries() == set()
