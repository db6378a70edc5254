"""NFC leases that break, lie, run out or are not used up: typed errors, and no lease left."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from appliance.base.units import KIB, MIB
from tests.contract.block_reader import sample_content
from tests.contract.transport import segments
from tests.support.nfc_server import NfcServer
from tests.support.tls_file_server import Fault, FaultKind
from tests.support.vsphere_disk import disk_info, disk_request
from vmware.errors import (
    CancelledError,
    CertificateError,
    FileFaultError,
    ObjectGoneError,
    PrivilegeError,
    TransportError,
    VsphereError,
)
from vmware.transports.contract import BehindWindowError, DiskReader
from vmware.transports.nfc_export import NfcLeaseTransport
from vmware.vmdk_descriptor import VmdkError

_CONTENT = sample_content(2 * MIB)
_NOISE = random.Random(3).randbytes(3 * MIB)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NfcServer]:
    server = NfcServer(tmp_path)
    server.show(_CONTENT, _NOISE)
    yield server
    server.http.close()
    assert set(server.leases) == set(server.ended), "a lease was left"
    assert not [thread for thread in threading.enumerate() if thread.name == "nfc-lease"]


def _whole(disk: DiskReader) -> bytes:
    return b"".join(disk.read_at(*part) for part in segments(disk.size_bytes, 64 * KIB))


def test_a_disk_that_was_read_to_its_end_completes_the_lease(server: NfcServer) -> None:
    """Completed, not aborted, and progress was reported up to the end."""
    disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert _whole(disk) == _CONTENT
    disk.close()
    assert list(server.ended.values()) == ["complete"]
    assert server.progress[-1] == 100


def test_a_disk_that_was_not_aborts_it(server: NfcServer) -> None:
    """A run that stops early does not pretend that it has everything."""
    disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    disk.read_at(0, 4096)
    disk.close()
    assert list(server.ended.values()) == ["abort"]


def test_disks_of_one_snapshot_share_a_lease(server: NfcServer) -> None:
    """The lease lives until the last of them is closed."""
    transport = NfcLeaseTransport()
    first = transport.open(server.request(len(_CONTENT)))
    second = transport.open(server.request(len(_NOISE), unit=1))
    assert len(server.leases) == 1
    assert _whole(first) == _CONTENT
    first.close()
    assert server.ended == {}
    assert _whole(second) == _NOISE
    second.close()
    assert server.ended == {"lease-1": "complete"}


def test_a_disk_that_comes_after_the_lease_ended_gets_a_new_one(server: NfcServer) -> None:
    """Disks may be read one after the other."""
    transport = NfcLeaseTransport()
    for number in (1, 2):
        disk = transport.open(server.request(len(_CONTENT)))
        assert _whole(disk) == _CONTENT
        disk.close()
        assert server.leases[-1] == f"lease-{number}"


def test_one_disk_that_fails_to_open_does_not_end_the_lease_of_the_others(
    server: NfcServer,
) -> None:
    """It is aborted in the end, because not all was fetched."""
    transport = NfcLeaseTransport()
    good = transport.open(server.request(len(_CONTENT)))
    with pytest.raises(FileFaultError, match="no disk ParaVirtualSCSIController0:7"):
        transport.open(server.request(len(_CONTENT), unit=7))
    assert server.ended == {}
    assert _whole(good) == _CONTENT
    good.close()
    assert server.ended == {"lease-1": "abort"}


@pytest.mark.parametrize("after_bytes", [0, 100, 70_000, 300_000])
def test_a_stream_that_breaks_is_never_a_disk_with_zeros(
    server: NfcServer, after_bytes: int
) -> None:
    """Wherever it ends early, what had not come is an error, then and ever after."""
    server.http.misbehave(Fault(FaultKind.CUT, after_bytes=after_bytes))
    read = bytearray()
    with pytest.raises(TransportError):
        disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
        try:
            for part in segments(len(_CONTENT), 64 * KIB):
                read += disk.read_at(*part)
        except TransportError:
            with pytest.raises(TransportError):
                disk.read_at(len(_CONTENT) - 1, 1)
            raise
        finally:
            disk.close()
    assert _CONTENT.startswith(read)
    assert list(server.ended.values()) == ["abort"]


def test_a_stream_without_its_end_is_an_error(server: NfcServer) -> None:
    """A clean end of the connection in the place of the end marker may hide lost grains."""
    path = "/nfc/52/disk-0.vmdk"
    for content in (bytes(1 * MIB), _NOISE):  # nothing, and everything up to the disk's end
        server.show(content)
        server.http.files[path] = server.http.files[path][:-512]
        disk = NfcLeaseTransport().open(server.request(len(content)))
        with pytest.raises(TransportError):
            _whole(disk)
        disk.close()


def test_a_stream_of_another_disk_does_not_open(server: NfcServer) -> None:
    """The capacity in the stream is the disk's, or it is not the disk."""
    with pytest.raises(FileFaultError, match="sends a disk of"):
        NfcLeaseTransport().open(server.request(len(_CONTENT) + 512))
    assert list(server.ended.values()) == ["abort"]


def test_what_is_no_vmdk_does_not_open(server: NfcServer) -> None:
    """vcsim, for one, sends a text."""
    server.http.files["/nfc/52/disk-0.vmdk"] = b"# Disk DescriptorFile\n" * 100
    with pytest.raises(VmdkError):
        NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert list(server.ended.values()) == ["abort"]


@pytest.mark.parametrize("status", [404, 403, 500])
def test_a_refused_download_does_not_open(server: NfcServer, status: int) -> None:
    """The lease is given back."""
    server.http.misbehave(Fault(FaultKind.STATUS, status=status))
    with pytest.raises(VsphereError):
        NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert list(server.ended.values()) == ["abort"]


def test_a_lease_in_error_says_why(server: NfcServer) -> None:
    """The fault in the lease is translated like any other, and the lease aborted."""
    server.states, server.error = ["error"], vim.fault.FileLocked(file="[store 1] web/web.vmdk")
    with pytest.raises(VsphereError, match="FileLocked") as caught:
        NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert caught.value.retryable
    assert list(server.ended.values()) == ["abort"]


def test_a_refused_lease_leaves_nothing(server: NfcServer) -> None:
    """A missing VApp.Export is named."""

    def refuse(_moref: str) -> Any:
        raise vim.fault.NoPermission(privilegeId="VApp.Export")

    server.session.methods["ExportSnapshot"] = refuse
    with pytest.raises(PrivilegeError, match=r"VApp\.Export"):
        NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert server.leases == []


def test_waiting_for_a_lease_ends_with_the_run(server: NfcServer) -> None:
    """A cancelled run gives back the lease that it was waiting for."""
    server.states = ["initializing"]
    request = server.request(len(_CONTENT), cancelled=lambda: True)
    with pytest.raises(CancelledError):
        NfcLeaseTransport().open(request)
    assert list(server.ended.values()) == ["abort"]


def test_a_host_is_trusted_by_the_certificate_that_the_lease_names(server: NfcServer) -> None:
    """Another host than the server: with the right certificate yes, without one or another no."""
    server.host = "localhost"
    disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert _whole(disk) == _CONTENT
    disk.close()
    server.http.requests.clear()
    for thumbprint in (None, "0" * 40):
        server.thumbprint = thumbprint
        with pytest.raises(CertificateError):
            NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert server.http.requests == []


def test_a_star_is_the_server_and_its_certificate(server: NfcServer) -> None:
    """ESXi names no host and no certificate of its own."""
    server.thumbprint = None
    disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert _whole(disk) == _CONTENT
    disk.close()


def test_an_idle_lease_is_kept_alive(server: NfcServer) -> None:
    """Reports come without anybody reading, several in the life of a lease."""
    reported = threading.Event()

    def report(_moref: str, percent: int) -> None:
        server.progress.append(percent)
        if len(server.progress) == 3:
            reported.set()

    server.session.methods["HttpNfcLeaseProgress"] = report
    server.timeout_s = 0.04  # type: ignore[assignment]
    disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    disk.read_at(0, 1 * MIB)
    assert reported.wait(20)
    disk.close()
    assert 0 < server.progress[-1] < 100


def test_a_lease_that_is_gone_ends_the_reading(server: NfcServer) -> None:
    """What the server does not stand behind any more is not read on."""
    gone = threading.Event()

    def report(moref: str, _percent: int) -> None:
        gone.set()
        raise vmodl.fault.ManagedObjectNotFound(obj=server.session.object(vim.HttpNfcLease, moref))

    server.session.methods["HttpNfcLeaseProgress"] = report
    server.timeout_s = 0.04  # type: ignore[assignment]
    disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    assert gone.wait(20)
    with pytest.raises(ObjectGoneError):
        for _ in range(10_000):
            _whole(disk)
            disk.close()
            disk = NfcLeaseTransport().open(server.request(len(_CONTENT)))
    disk.close()


def test_a_place_behind_the_window_is_refused(server: NfcServer) -> None:
    """A stream cannot go back: a typed error says so, and what is in the window stays."""
    disk = NfcLeaseTransport(window_bytes=512 * KIB).open(server.request(len(_NOISE), unit=1))
    end = len(_NOISE)
    assert disk.read_at(end - 64 * KIB, 64 * KIB) == _NOISE[-64 * KIB :]
    assert disk.read_at(end - 256 * KIB, 64 * KIB) == _NOISE[end - 256 * KIB : end - 192 * KIB]
    with pytest.raises(BehindWindowError) as caught:
        disk.read_at(0, 4096)
    assert caught.value.retryable
    disk.close()


def test_closing_wakes_a_read_that_waits_for_the_host(server: NfcServer) -> None:
    """A cancelled run does not wait for a host that has stopped to send."""
    stalled = Fault(FaultKind.STALL, after_bytes=200_000)
    server.http.misbehave(stalled)
    disk = NfcLeaseTransport().open(server.request(len(_NOISE), unit=1))
    ended: list[BaseException] = []

    def read() -> None:
        try:
            disk.read_at(len(_NOISE) - 1, 1)
        except VsphereError as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    while not disk._lock.locked():  # type: ignore[attr-defined]
        threading.Event().wait(0.001)
    disk.close()
    reader.join()
    assert [type(error) for error in ended] == [CancelledError]
    with pytest.raises(CancelledError):
        disk.read_at(0, 1)


def test_an_encrypted_disk_is_refused_unasked(server: NfcServer) -> None:
    """vSphere exports no encrypted VM."""
    request = disk_request(server.session, disk_info(len(_CONTENT), key_id="key-1"))
    refusal = NfcLeaseTransport().refusal(request)
    assert refusal is not None
    assert refusal.code == "transport.encrypted-disk"
    assert NfcLeaseTransport().refusal(server.request(1)) is None
