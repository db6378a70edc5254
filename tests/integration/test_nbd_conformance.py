"""The NBD server judged by other people's clients: libnbd, qemu and fio, on both socket kinds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.exports.nbd import NbdExport, NbdServer, TcpAddress
from tests.support.nbd_client import NbdClient
from tests.support.nbd_servers import serving
from tests.support.needs import needs
from tests.support.programs import attempt, guarded, run
from tests.support.sparse_device import SparseDevice

pytestmark = pytest.mark.integration

MIB = 1 << 20
DISK_BYTES = 48 * MIB
DATA_OFFSET = 5 * MIB
DATA = random.Random(20261120).randbytes(6 * MIB)
SUPPORT = Path(__file__).parent.parent / "support"


class BrakedDevice(SparseDevice):
    """Takes 10 ms for a read while the brake is on."""

    braked = True

    def try_read_at(self, offset: int, length: int) -> bytes | None:
        return None if self.braked else self.read_at(offset, length)

    def read_at(self, offset: int, length: int) -> bytes:
        if self.braked:
            time.sleep(0.01)
        return super().read_at(offset, length)


def sample_disk() -> SparseDevice:
    disk = SparseDevice(DISK_BYTES)
    disk.write_at(DATA_OFFSET, DATA)
    disk.write_at(DISK_BYTES - 512, b"end" * 170)
    return disk


@pytest.fixture(params=["tcp", "unix"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NbdServer]:
    """A writable and a read-only export of the same content, on disks of their own."""
    address = TcpAddress() if request.param == "tcp" else tmp_path / "nbd.sock"
    with serving(
        NbdExport(name="disk-0", disk=sample_disk(), read_only=False, description="first"),
        NbdExport(name="read only", disk=sample_disk()),
        NbdExport(name="small", disk=SparseDevice(MIB), read_only=False),
        NbdExport(name="small-ro", disk=SparseDevice(MIB)),
        address=address,
    ) as running:
        yield running


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.raw"
    path.write_bytes(sample_disk().read_at(0, DISK_BYTES))
    return path


def test_nbdinfo_sees_what_is_served(server: NbdServer) -> None:
    needs("nbdinfo")
    info = json.loads(run("nbdinfo", "--json", server.uri("disk-0")))
    assert info["structured"] is True and info["TLS"] is False
    (export,) = info["exports"]
    assert export["export-size"] == DISK_BYTES
    assert export["contexts"] == ["base:allocation"]
    assert not export["is_read_only"]
    for ability in ("flush", "fua", "trim", "zero", "fast_zero", "multi_conn", "df", "cache"):
        assert export[f"can_{ability}"], ability
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (1, 32 * MIB)
    listed = json.loads(run("nbdinfo", "--json", "--list", server.uri("disk-0")))["exports"]
    assert [entry["export-name"] for entry in listed][:2] == ["disk-0", "read only"]
    assert listed[0]["description"] == "first"
    run("nbdinfo", "--is", "read-only", server.uri("read only"))


def test_nbdinfo_maps_the_holes(server: NbdServer) -> None:
    needs("nbdinfo")
    found = json.loads(run("nbdinfo", "--map", "--json", server.uri("disk-0")))
    assert [(extent["offset"], extent["length"], extent["type"]) for extent in found] == [
        (0, DATA_OFFSET, 3),
        (DATA_OFFSET, len(DATA), 0),
        (DATA_OFFSET + len(DATA), DISK_BYTES - 4096 - DATA_OFFSET - len(DATA), 3),
        (DISK_BYTES - 4096, 4096, 0),
    ]


@pytest.mark.parametrize("connections", [1, 4])
def test_nbdcopy_reads_and_writes_everything(
    server: NbdServer, image: Path, tmp_path: Path, connections: int
) -> None:
    """Out with holes, in from a file, and between two of our exports."""
    needs("nbdcopy", "cmp")
    many, copy = f"--connections={connections}", tmp_path / "copy.raw"
    run("nbdcopy", many, server.uri("read only"), copy)
    run("cmp", image, copy)
    noise = tmp_path / "noise.raw"
    noise.write_bytes(random.Random(connections).randbytes(DISK_BYTES))
    run("nbdcopy", many, "--flush", noise, server.uri("disk-0"))
    run("nbdcopy", many, server.uri("disk-0"), copy)
    run("cmp", noise, copy)
    run("nbdcopy", many, "--destination-is-zero", server.uri("read only"), copy)
    run("nbdcopy", many, server.uri("read only"), server.uri("disk-0"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, server.uri("disk-0"))


def test_illegal_requests_of_libnbd_get_the_right_errors(server: NbdServer) -> None:
    """Past the end, on read-only exports, with flags that mean nothing, above every limit."""
    if attempt("/usr/bin/python3", "-c", "import nbd").returncode:
        needs("python3-libnbd")
    printed = run(
        "/usr/bin/python3",
        SUPPORT / "libnbd_illegal_requests.py",
        server.uri("small"),
        server.uri("small-ro"),
    )
    assert len(printed.splitlines()) == 38


def test_qemu_img_reads_maps_and_compares(server: NbdServer, image: Path, tmp_path: Path) -> None:
    needs("qemu-img")
    uri = server.uri("read only")
    assert json.loads(run("qemu-img", "info", "--output=json", uri))["virtual-size"] == DISK_BYTES
    mapped = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", uri))
    data = [(e["start"], e["length"]) for e in mapped if e["data"] and not e["zero"]]
    assert data[0] == (DATA_OFFSET, len(DATA))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", uri, image)
    copy = tmp_path / "copy.qcow2"
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", uri, copy)
    run("qemu-img", "compare", "-F", "raw", "-f", "qcow2", copy, image)
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copy, server.uri("disk-0"))
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.uri("disk-0"), image)
    refused = attempt("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copy, uri)
    assert refused.returncode != 0


@pytest.mark.parametrize("cache", ["writeback", "writethrough", "none"])
def test_qemu_io_patterns_hold(server: NbdServer, cache: str) -> None:
    """Writes, FUA writes, zeroes with and without holes, discards; read back by another client."""
    needs("qemu-io")
    commands = [
        "write -P 0x11 0 1M",
        "write -f -P 0x22 512k 64k",
        "write -z 600k 20k",
        "write -z -u 700k 20k",
        "write -P 0x33 3M 32M",
        "discard 8M 4M",
        "aio_write -P 0x44 13M 3k",
        "aio_write -P 0x55 14M 130k",
        "aio_flush",
        "flush",
    ]
    checks = [
        "read -P 0x11 0 512k",
        "read -P 0x22 512k 64k",
        "read -P 0x11 576k 24k",
        "read -P 0 600k 20k",
        "read -P 0x11 620k 80k",
        "read -P 0 700k 20k",
        "read -P 0x33 3M 5M",
        "read -P 0 8M 4M",
        "read -P 0x44 13M 3k",
        "read -P 0x55 14M 130k",
        "read -P 0x33 15M 20M",
    ]
    for batch in (commands, checks):
        arguments = [word for command in batch for word in ("-c", command)]
        printed = run(
            "qemu-io", "-f", "raw", "-t", cache, "-d", "unmap", *arguments, server.uri("disk-0")
        )
        assert "failed" not in printed.lower() and "Pattern" not in printed


@pytest.mark.parametrize("depth", [1, 16])
def test_fio_verifies_what_it_wrote(server: NbdServer, tmp_path: Path, depth: int) -> None:
    """Random writes of 512 B to 128 KiB, each with a checksum, read back and checked."""
    needs("fio")
    if "nbd" not in run("fio", "--enghelp"):
        needs("fio with the nbd engine")
    run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri('disk-0')}"),
        *("--rw=randwrite", "--bsrange=512-128k", "--size=24M", f"--iodepth={depth}"),
        *("--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--randseed=4711"),
        cwd=tmp_path,
    )


def test_a_stopped_client_does_not_stop_another(tmp_path: Path) -> None:
    """One nbdcopy is frozen while it reads; a second one finishes; then the first one does too."""
    needs("nbdcopy", "cmp")
    disk = BrakedDevice(256 * MIB, content=random.Random(5).randbytes(64 * MIB) * 4)
    with serving(NbdExport(name="disk", disk=disk)) as server:
        frozen_file = tmp_path / "frozen.raw"
        command = guarded("nbdcopy", "--connections=1", server.uri("disk"), frozen_file)
        with subprocess.Popen([command[0], "--foreground", *command[1:]]) as frozen:
            while server.counters.read_bytes < 4 * MIB:
                assert frozen.poll() is None, "the copy must be caught in the middle"
                time.sleep(0.001)
            child = Path(f"/proc/{frozen.pid}/task/{frozen.pid}/children").read_text().split()[0]
            pidfd = os.pidfd_open(int(child))
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
            disk.braked = False
            try:
                copy = tmp_path / "copy.raw"
                run("nbdcopy", server.uri("disk"), copy)
                assert frozen.poll() is None
            finally:
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
                os.close(pidfd)
            assert frozen.wait(60) == 0
        run("cmp", copy, frozen_file)


def test_a_server_stopped_under_load_ends_its_clients(tmp_path: Path) -> None:
    """fio gets an error, not a hang, and stop returns with all threads joined."""
    needs("fio")
    disk = SparseDevice(DISK_BYTES)
    with serving(NbdExport(name="disk", disk=disk, read_only=False)) as server:
        command = guarded(
            *("fio", "--name=load", "--ioengine=nbd", f"--uri={server.uri('disk')}"),
            *("--rw=randrw", "--bs=4k", "--size=32M", "--iodepth=32", "--time_based"),
            "--runtime=100",
        )
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as load:
            while server.counters.written_bytes < MIB:
                assert load.poll() is None
                time.sleep(0.001)
            server.stop()
            assert load.wait(60) not in (0, -signal.SIGKILL, 137)


def test_acknowledged_writes_are_there_for_the_next_server(tmp_path: Path) -> None:
    """The disk outlives the server: a second one shows what was written over the first."""
    disk = SparseDevice(DISK_BYTES)
    path = tmp_path / "nbd.sock"
    for number in range(3):
        with (
            serving(NbdExport(name="disk", disk=disk, read_only=False), address=path),
            NbdClient(path) as client,
        ):
            client.negotiate("disk")
            if number:
                assert client.read(0, number).data == bytes(range(number))
            assert client.write(number, bytes([number])).errno == 0
