"""Importing disks while the host refuses, fills up or goes away: nothing half made is kept."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from appliance.base.units import KIB, MIB
from tests.contract.block_reader import sample_content
from tests.support.nfc_server import NfcServer
from tests.support.tls_file_server import Fault, FaultKind
from vmware.errors import (
    CancelledError,
    NoSpaceError,
    ObjectGoneError,
    TransportError,
    VsphereError,
)
from vmware.stream_optimized_reader import StreamOptimizedReader
from vmware.transports.contract import Access, BehindWindowError, DiskWriter, OutOfDiskError
from vmware.transports.nfc_import import NfcImport

_CONTENT = sample_content(2 * MIB)
_ADDRESS = "ParaVirtualSCSIController0:0"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NfcServer]:
    server = NfcServer(tmp_path)
    server.keys = [_ADDRESS, "ParaVirtualSCSIController0:1", "nvram"]
    yield server
    server.http.close()
    assert set(server.leases) == set(server.ended), "a lease was left"
    names = {thread.name.partition("_")[0] for thread in threading.enumerate()}
    assert not names & {"nfc-lease", "streamoptimized"}


def _begin(server: NfcServer) -> NfcImport:
    spec: Any = vim.vm.VmImportSpec(configSpec=vim.vm.ConfigSpec(name="web"))
    return NfcImport.begin(
        server.session,  # type: ignore[arg-type]
        spec,
        pool_moref="resgroup-1",
        folder_moref="group-v1",
        host_moref="host-1",
    )


def _uploaded(server: NfcServer, number: int) -> bytes:
    reader = StreamOptimizedReader(
        io.BytesIO(server.http.uploads[f"/nfc/52/disk-{number}.vmdk"]).read
    )
    content = bytearray(reader.capacity_bytes)
    for grain in reader.grains():
        content[grain.offset : grain.end] = grain.inflate()
    return bytes(content)


def test_disks_go_up_as_they_are_written(server: NfcServer) -> None:
    """Two at once, by two threads; then the lease is completed."""

    def write(writer: DiskWriter, content: bytes, step: int) -> None:
        for start in range(0, len(content), step):
            writer.write_at(start, content[start : start + step])
        writer.flush()
        writer.close()

    other = random.Random(4).randbytes(1 * MIB + 512)
    with _begin(server) as importing:
        assert importing.vm_moref == "vm-9"
        first = importing.disk(_ADDRESS, len(_CONTENT))
        second = importing.disk("ParaVirtualSCSIController0:1", len(other))
        threads = [
            threading.Thread(target=write, args=(first, _CONTENT, 100_000)),
            threading.Thread(target=write, args=(second, other, 64 * KIB)),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        device = importing.nvram_device
        assert device is not None
        importing.put_nvram(device, b"boot entries")
        importing.finish()
    assert (_uploaded(server, 0), _uploaded(server, 1)) == (_CONTENT, other)
    assert server.http.uploads["/nfc/52/disk-2.vmdk"] == b"boot entries"
    assert list(server.ended.values()) == ["complete"]
    posted = [request for request in server.http.requests if request.method == "POST"]
    assert {request.headers["content-type"] for request in posted} == {
        "application/x-vnd.vmware-streamVmdk"
    }


def test_zeros_are_not_sent(server: NfcServer) -> None:
    """Neither those that are written nor those that are left out."""
    with _begin(server) as importing:
        writer = importing.disk(_ADDRESS, 512 * MIB)
        writer.write_at(0, bytes(8 * MIB))
        writer.zero_at(8 * MIB, 500 * MIB)
        writer.write_at(510 * MIB, b"end")
        writer.close()
        importing.finish()
    assert len(server.http.uploads["/nfc/52/disk-0.vmdk"]) < 256 * KIB


def test_a_stream_is_written_forward_and_inside(server: NfcServer) -> None:
    """What a stream cannot do is a typed error that does not break it."""
    with _begin(server) as importing:
        writer = importing.disk(_ADDRESS, len(_CONTENT))
        assert writer.access is Access.ASCENDING
        writer.write_at(0, _CONTENT[: 64 * KIB])
        with pytest.raises(BehindWindowError):
            writer.write_at(0, b"again")
        with pytest.raises(BehindWindowError):
            writer.zero_at(0, 10)
        with pytest.raises(OutOfDiskError):
            writer.write_at(len(_CONTENT), b"x")
        writer.write_at(64 * KIB, _CONTENT[64 * KIB :])
        writer.close()
        writer.close()
        importing.finish()
    assert _uploaded(server, 0) == _CONTENT


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault(FaultKind.STATUS, status=507, method="POST"), NoSpaceError),
        (Fault(FaultKind.STATUS, status=500, method="POST"), TransportError),
        (Fault(FaultKind.NO_ANSWER, method="POST"), TransportError),
        (Fault(FaultKind.GARBAGE, method="POST"), TransportError),
        (Fault(FaultKind.HANG_UP, status=507, method="POST"), VsphereError),
    ],
    ids=["full", "refused", "no answer", "garbage", "hangs up"],
)
def test_a_host_that_does_not_take_it_ends_the_import(
    server: NfcServer, fault: Fault, error: type[VsphereError]
) -> None:
    """The error says why, the lease is aborted, and no thread or socket is left."""
    server.http.misbehave(fault)
    noise = random.Random(5).randbytes(1 * MIB)
    with pytest.raises(error), _begin(server) as importing:
        writer = importing.disk(_ADDRESS, 16 * MIB)
        for start in range(0, 16 * MIB, len(noise)):
            writer.write_at(start, noise)
        writer.close()
    assert list(server.ended.values()) == ["abort"]


def test_a_writer_that_failed_stays_failed(server: NfcServer) -> None:
    """It cannot be closed as if it were whole, and the import cannot be finished."""
    server.http.misbehave(Fault(FaultKind.STATUS, status=500, method="POST"))
    with _begin(server) as importing:
        writer = importing.disk(_ADDRESS, len(_CONTENT))
        writer.write_at(0, _CONTENT)
        for _ in range(2):
            with pytest.raises(TransportError):
                writer.close()
        with pytest.raises(TransportError):
            writer.write_at(len(_CONTENT), b"")
        with pytest.raises(TransportError, match="not uploaded"):
            importing.finish()
    assert list(server.ended.values()) == ["abort"]


def test_an_abandoned_import_aborts_once(server: NfcServer) -> None:
    """Whatever was begun; writers in other threads fail from then on."""
    importing = _begin(server)
    writer = importing.disk(_ADDRESS, len(_CONTENT))
    writer.write_at(0, _CONTENT[:1000])
    importing.abandon()
    importing.abandon()
    with pytest.raises(CancelledError):
        writer.write_at(1000, b"x")
    with pytest.raises(CancelledError):
        writer.close()
    assert list(server.ended.values()) == ["abort"]


def test_a_lease_that_cannot_be_completed_is_an_error(server: NfcServer) -> None:
    """The VM is gone then, so nobody may believe in it."""

    def gone(moref: str) -> None:
        server.ended[moref] = "gone"
        raise vim.fault.NotFound()

    server.session.methods["HttpNfcLeaseComplete"] = gone
    with pytest.raises(ObjectGoneError), _begin(server) as importing:
        importing.finish()


def test_nvram_is_bounded(server: NfcServer) -> None:
    """Nothing and too much are refused before a connection is made."""
    with _begin(server) as importing:
        device = importing.nvram_device
        assert device is not None
        for data in (b"", bytes(17 * MIB)):
            with pytest.raises(TransportError):
                importing.put_nvram(device, data)
    assert server.http.requests == []
