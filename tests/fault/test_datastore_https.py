"""Datastore HTTPS while servers break, lie and refuse: the right bytes, or a typed error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from appliance.base.units import KIB, MIB
from tests.contract.block_reader import sample_content
from tests.contract.transport import segments
from tests.support.datastore_server import FOLDER, DatastoreServer
from tests.support.tls_file_server import Fault, FaultKind, Request
from tests.support.vsphere_disk import disk_info, disk_request
from vmware.errors import (
    CancelledError,
    FileFaultError,
    InvalidRequestError,
    PrivilegeError,
    ProtocolError,
    TransportError,
    VsphereError,
)
from vmware.transports.contract import OutOfDiskError
from vmware.transports.datastore_https import (
    DatastoreHttpsReader,
    DatastoreHttpsTransport,
    Tuning,
)
from vmware.transports.range_client import RetryPolicy
from vmware.vmdk_descriptor import VmdkError

_CONTENT = sample_content(2 * MIB)
_QUICK = RetryPolicy(pauses_s=(0.0, 0.0, 0.0), failures=8)
_SMALL = Tuning(
    piece_bytes=256 * KIB,
    ticket_piece_bytes=256 * KIB,
    window_bytes=1 * MIB,
    gap_bytes=8 * KIB,
    ticket_gap_bytes=8 * KIB,
    small_bytes=4 * KIB,
    retry=_QUICK,
)
_FLAT = f"{FOLDER}web-flat.vmdk"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DatastoreServer]:
    """A vCenter and its host; tests of one route switch the other off."""
    server = DatastoreServer(tmp_path)
    server.show(_CONTENT)
    yield server
    server.http.close()


def _open(server: DatastoreServer, *, direct: bool = False, **fields: Any) -> DatastoreHttpsReader:
    request = server.request(fields.pop("size_bytes", len(_CONTENT)), **fields)
    return DatastoreHttpsTransport(_SMALL, direct=direct).open(request)


def _whole(disk: DatastoreHttpsReader) -> bytes:
    try:
        return b"".join(disk.read_at(*part) for part in segments(disk.size_bytes, 64 * KIB))
    finally:
        disk.close()


def _is_data(request: Request) -> bool:
    return request.path == _FLAT and request.range != (0, 512)


_PASSING = {
    "HTTP 500": Fault(FaultKind.STATUS, status=500),
    "HTTP 503 twice": Fault(FaultKind.STATUS, status=503, times=2),
    "no answer": Fault(FaultKind.NO_ANSWER),
    "garbage": Fault(FaultKind.GARBAGE),
    "reset at once": Fault(FaultKind.RESET),
    "reset mid-stream": Fault(FaultKind.RESET, after_bytes=100_000),
    "end mid-stream": Fault(FaultKind.CUT, after_bytes=100_000, times=4),
    "error page in the body": Fault(FaultKind.ERROR_PAGE, after_bytes=100_000, times=3),
    "short length": Fault(FaultKind.SHORT_LENGTH, after_bytes=1000),
    "chunked": Fault(FaultKind.CHUNKED, times=50),
}


@pytest.mark.parametrize("direct", [False, True], ids=["vcenter", "host"])
@pytest.mark.parametrize("name", _PASSING)
def test_what_passes_is_read_through(server: DatastoreServer, name: str, direct: bool) -> None:
    """Whatever breaks for a moment, the disk is read whole and right."""
    model = _PASSING[name]
    disk = _open(server, direct=direct)
    fault = Fault(
        model.kind,
        after_bytes=model.after_bytes,
        status=model.status,
        times=model.times,
        fits=_is_data,
    )
    server.http.misbehave(fault)
    assert _whole(disk) == _CONTENT
    assert fault.times < model.times, "the fault was never met"


def test_a_broken_range_goes_on_where_it_broke(server: DatastoreServer) -> None:
    """What had come is not fetched again, but for the end, which may be an error page."""
    disk = _open(server)
    server.http.misbehave(
        Fault(FaultKind.CUT, after_bytes=100_000, fits=lambda r: r.range == (0, 256 * KIB))
    )
    assert _whole(disk) == _CONTENT
    held_back = 64 * KIB
    assert (100_000 - held_back, 256 * KIB - 100_000 + held_back) in server.ranges()


_LIES = {
    "another range": FaultKind.SHIFTED_RANGE,
    "another size": FaultKind.OTHER_SIZE,
    "the whole file": FaultKind.WHOLE_FILE,
    "compressed": FaultKind.COMPRESSED,
}


@pytest.mark.parametrize("name", _LIES)
def test_an_answer_to_something_else_is_refused(server: DatastoreServer, name: str) -> None:
    """No byte of an answer whose headers do not fit is handed out as disk."""
    disk = _open(server)
    server.http.misbehave(Fault(_LIES[name], times=1000, fits=_is_data))
    with pytest.raises(ProtocolError):
        _whole(disk)


def test_tries_are_bounded(server: DatastoreServer) -> None:
    """A server that never delivers is given up after the pauses of the policy."""
    disk = _open(server, planned=())
    before = len(server.ranges())
    server.http.misbehave(Fault(FaultKind.NO_ANSWER, times=1000, fits=_is_data))
    with pytest.raises(TransportError):
        disk.read_at(0, 4096)
    disk.close()
    assert len(server.ranges()) - before <= len(_QUICK.pauses_s) + 2


def test_a_server_that_trickles_is_given_up_too(server: DatastoreServer) -> None:
    """Progress renews patience, but not for ever."""
    disk = _open(server, planned=())
    server.http.misbehave(Fault(FaultKind.CUT, after_bytes=66_000, times=1000, fits=_is_data))
    with pytest.raises(TransportError):
        disk.read_at(0, 256 * KIB)
    disk.close()
    assert len(server.ranges()) == _QUICK.failures + 1


@pytest.mark.parametrize("direct", [False, True], ids=["vcenter", "host"])
def test_a_full_read_is_a_few_large_ranges(server: DatastoreServer, direct: bool) -> None:
    """Neighbouring small reads become whole pieces, each byte once."""
    assert _whole(_open(server, direct=direct)) == _CONTENT
    step = 256 * KIB
    assert sorted(server.ranges()) == [(at, step) for at in range(0, len(_CONTENT), step)]


def test_scattered_changes_are_all_that_is_read(server: DatastoreServer) -> None:
    """Beside what is planned, only small gaps and the rounding to 4 KiB are read."""
    planned = ((10 * KIB, 5 * KIB), (20 * KIB, 4 * KIB), (600 * KIB, 300 * KIB), (1900 * KIB, 1))
    disk = _open(server, planned=planned)
    for offset, length in planned:
        assert disk.read_at(offset, length) == _CONTENT[offset : offset + length]
    disk.close()
    assert sorted(server.ranges()) == [
        (8 * KIB, 16 * KIB),  # two extents and the gap between them
        (600 * KIB, 168 * KIB),  # to a border of pieces
        (768 * KIB, 132 * KIB),
        (1900 * KIB, 4 * KIB),
    ]


def test_no_more_than_the_window_is_fetched_ahead(server: DatastoreServer) -> None:
    """A reader that does not go on holds at most a window of memory."""
    disk = _open(server)
    disk.read_at(0, 1)
    while sum(length for _, length in server.ranges()) < _SMALL.window_bytes:
        threading.Event().wait(0.001)
    assert disk.read_at(_SMALL.window_bytes - 1, 1) == _CONTENT[_SMALL.window_bytes - 1 :][:1]
    disk.close()
    assert sum(length for _, length in server.ranges()) == _SMALL.window_bytes


def test_a_reader_that_skips_takes_the_window_along(server: DatastoreServer) -> None:
    """A plan that is not followed costs its window once, and never blocks."""
    disk = _open(server)
    for offset in (0, 1800 * KIB, 1900 * KIB, 64 * KIB):
        assert disk.read_at(offset, 64 * KIB) == _CONTENT[offset : offset + 64 * KIB]
    disk.close()


def test_connections_are_kept_and_bounded(server: DatastoreServer) -> None:
    """Through vCenter, a disk costs a few connections however many ranges it takes."""
    disk = _open(server)
    before = server.http.connections
    assert _whole(disk) == _CONTENT
    assert server.http.connections - before <= _SMALL.connections


def test_a_connection_that_grew_stale_costs_no_try(server: DatastoreServer) -> None:
    """A server that closes idle connections is not taken for a broken one."""
    tuning = Tuning(retry=RetryPolicy(pauses_s=()))
    disk = DatastoreHttpsTransport(tuning, direct=False).open(
        server.request(len(_CONTENT), planned=())
    )
    disk.read_at(0, 4096)
    server.http.misbehave(Fault(FaultKind.NO_ANSWER, fits=_is_data))
    assert disk.read_at(4096, 4096) == _CONTENT[4096:8192]
    disk.close()


# Routes


def test_bulk_goes_to_the_host_with_a_ticket_for_each_request(server: DatastoreServer) -> None:
    """vCenter is asked for tickets, not for bytes."""
    disk = _open(server, direct=True)
    assert disk.route == "host 127.0.0.1"
    server.http.requests.clear()
    assert _whole(disk) == _CONTENT
    assert all(map(server.by_ticket, server.http.requests))
    assert len({request.connection for request in server.http.requests}) == len(
        server.http.requests
    )


def test_small_ranges_are_not_worth_a_ticket(server: DatastoreServer) -> None:
    """They go through vCenter, on connections that are kept; large ones still go to the host."""
    planned = ((0, 2 * KIB), (512 * KIB, 2 * KIB), (1 * MIB, 256 * KIB))
    tuning = Tuning(piece_bytes=256 * KIB, ticket_piece_bytes=256 * KIB, small_bytes=64 * KIB)
    disk = DatastoreHttpsTransport(tuning).open(server.request(len(_CONTENT), planned=planned))
    server.http.requests.clear()
    for offset, length in planned:
        assert disk.read_at(offset, length) == _CONTENT[offset : offset + length]
    disk.close()
    tickets = {request.range: server.by_ticket(request) for request in server.http.requests}
    assert tickets == {
        (0, 4 * KIB): False,
        (512 * KIB, 4 * KIB): False,
        (1 * MIB, 256 * KIB): True,
    }


@pytest.mark.parametrize("why", ["no host", "no ticket", "no certificate", "another one", "401"])
def test_a_host_that_cannot_be_used_is_passed_over(
    server: DatastoreServer, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is then read through vCenter, and the log says why."""

    def refuse(_moref: str, _spec: Any) -> Any:
        raise vim.fault.NoPermission(privilegeId="Datastore.Browse")

    def switch_off() -> None:
        server.http.misbehave(Fault(FaultKind.STATUS, status=401, times=100, fits=server.by_ticket))

    prepare: dict[str, Callable[[], Any]] = {
        "no host": lambda: server.session.properties.pop("host-1"),
        "no ticket": lambda: server.session.methods.update(AcquireGenericServiceTicket=refuse),
        "no certificate": lambda: setattr(server, "thumbprint", None),
        "another one": lambda: setattr(server, "thumbprint", "0" * 40),
        "401": switch_off,
    }
    prepare[why]()
    with caplog.at_level(logging.INFO):
        disk = _open(server, direct=True)
    assert disk.route == "127.0.0.1"
    assert "not read from its host directly" in caplog.text
    assert _whole(disk) == _CONTENT


def test_a_host_that_dies_on_the_way_is_left_for_vcenter(server: DatastoreServer) -> None:
    """The rest of the disk comes through vCenter; nothing is read twice into the result."""
    disk = _open(server, direct=True)
    assert disk.read_at(0, 64 * KIB) == _CONTENT[: 64 * KIB]
    server.http.misbehave(Fault(FaultKind.RESET, times=1000, fits=server.by_ticket))
    assert _whole(disk) == _CONTENT
    assert disk.route == "127.0.0.1"


def test_a_lost_session_is_renewed(server: DatastoreServer) -> None:
    """HTTP 401 in the middle leads to a new login, and reading goes on."""
    disk = _open(server)
    server.http.misbehave(Fault(FaultKind.STATUS, status=401, fits=_is_data))
    assert _whole(disk) == _CONTENT
    assert "CurrentTime" in server.session.calls


def test_a_missing_privilege_is_named(server: DatastoreServer) -> None:
    """401 that logging in does not cure is a matter of privileges."""
    disk = _open(server)
    server.http.misbehave(Fault(FaultKind.STATUS, status=403, times=1000, fits=_is_data))
    with pytest.raises(PrivilegeError, match=r"Datastore\.FileManagement") as caught:
        _whole(disk)
    assert caught.value.privilege == "Datastore.FileManagement"


def test_neither_cookie_nor_ticket_gets_into_the_log(
    server: DatastoreServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever fails, at the most talkative level."""
    with caplog.at_level(logging.DEBUG):
        disk = _open(server, direct=True)
        server.http.misbehave(Fault(FaultKind.STATUS, status=500, times=9, fits=_is_data))
        assert _whole(disk) == _CONTENT
    assert server.session.cookie not in caplog.text
    assert "ticket-" not in caplog.text


# Opening


def test_a_file_that_its_vm_has_locked_does_not_open(server: DatastoreServer) -> None:
    """HTTP 500 for the first sector: the next transport is tried, nothing hangs."""
    server.http.misbehave(
        Fault(FaultKind.STATUS, times=1000, fits=lambda request: request.path == _FLAT)
    )
    with pytest.raises(TransportError, match="500"):
        _open(server)


def test_a_missing_flat_file_does_not_open(server: DatastoreServer) -> None:
    """The descriptor alone is no disk."""
    del server.http.files[_FLAT]
    with pytest.raises(FileFaultError):
        _open(server)


@pytest.mark.parametrize("change_bytes", [-512, 512])
def test_a_flat_file_of_another_size_does_not_open(
    server: DatastoreServer, change_bytes: int
) -> None:
    """The file measures exactly the disk's capacity, or it is not this disk."""
    server.http.files[_FLAT] = bytes(len(_CONTENT) + change_bytes)
    with pytest.raises(FileFaultError, match="bytes"):
        _open(server)
    with pytest.raises(FileFaultError, match="describes"):
        _open(server, size_bytes=len(_CONTENT) + change_bytes)


@pytest.mark.parametrize(
    ("extent", "error"),
    [
        ({"kind": "VMFSSPARSE"}, FileFaultError),
        ({"kind": "SESPARSE"}, FileFaultError),
        ({"kind": "VMFSRDM"}, FileFaultError),
        ({"file_name": "../other/web-flat.vmdk"}, InvalidRequestError),
        ({"file_name": "/vmfs/volumes/x/web-flat.vmdk"}, InvalidRequestError),
        ({"file_name": ".."}, InvalidRequestError),
        ({"file_name": "vsan://0123"}, InvalidRequestError),
        ({"file_name": None}, FileFaultError),
        ({"start_sector": 63}, FileFaultError),
    ],
)
def test_a_descriptor_that_leads_elsewhere_does_not_open(
    server: DatastoreServer, extent: dict[str, Any], error: type[VsphereError]
) -> None:
    """Only one flat extent in the descriptor's own folder is read."""
    server.show(_CONTENT, **extent)
    with pytest.raises(error):
        _open(server)


def test_a_descriptor_that_is_a_whole_disk_is_not_downloaded(server: DatastoreServer) -> None:
    """Some servers stream the disk under the descriptor's name: its size is looked at first."""
    server.http.files[f"{FOLDER}web.vmdk"] = _CONTENT
    with pytest.raises(FileFaultError, match="no descriptor"):
        _open(server)
    assert server.ranges("web.vmdk") == []


def test_a_descriptor_that_is_none_does_not_open(server: DatastoreServer) -> None:
    """Text or not, it has to be one."""
    server.http.files[f"{FOLDER}web.vmdk"] = b"\x00\xff" * 100
    with pytest.raises(VmdkError):
        _open(server)


@pytest.mark.parametrize("kind", ["vsan", "VVOL", "", "PMEM"])
def test_a_datastore_without_files_does_not_open(server: DatastoreServer, kind: str) -> None:
    """vSAN and vVol keep no `-flat` file that could be read."""
    server.session.properties["datastore-1"]["summary.type"] = kind
    with pytest.raises(FileFaultError, match="store 1"):
        _open(server)
    assert server.http.requests == []


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"backing_type": "VirtualDiskSeSparseBackingInfo"}, "transport.not-flat"),
        ({"backing_type": "VirtualDiskRawDiskMappingVer1BackingInfo"}, "transport.not-flat"),
        ({"chain": ("[s] a/a-000001.vmdk", "[s] a/a.vmdk")}, "transport.delta-disk"),
        ({"key_id": "key-1"}, "transport.encrypted-disk"),
    ],
)
def test_what_is_no_flat_base_is_refused_unasked(
    server: DatastoreServer, fields: dict[str, Any], code: str
) -> None:
    """From the snapshot's configuration alone, without a request."""
    request = disk_request(server.session, disk_info(len(_CONTENT), **fields))
    refusal = DatastoreHttpsTransport().refusal(request)
    assert refusal is not None
    assert refusal.code == code
    assert refusal.next_step
    assert server.http.requests == []


def test_a_plan_outside_the_disk_does_not_open(server: DatastoreServer) -> None:
    """It is a mistake of the caller, and named as one."""
    with pytest.raises(OutOfDiskError):
        _open(server, planned=((0, len(_CONTENT) + 1),))


# Ending


@pytest.mark.parametrize("direct", [False, True], ids=["vcenter", "host"])
@pytest.mark.parametrize("planned", [None, ()], ids=["ahead", "by itself"])
def test_closing_wakes_a_read_that_waits_for_the_server(
    server: DatastoreServer, planned: tuple[()] | None, direct: bool
) -> None:
    """A cancelled run does not wait for a host that has stopped to answer."""
    disk = _open(server, planned=planned, direct=direct)
    stalled = Fault(FaultKind.STALL, after_bytes=10, times=100, fits=_is_data)
    server.http.misbehave(stalled)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            disk.read_at(0, 64 * KIB)
        except VsphereError as error:
            ended.append(error)

    before = set(threading.enumerate())
    reader = threading.Thread(target=read)
    reader.start()
    while not server.ranges():
        threading.Event().wait(0.001)
    disk.close()
    reader.join()
    assert [type(error) for error in ended] == [CancelledError]
    left = set(threading.enumerate()) - before
    assert not [thread for thread in left if thread.name.startswith("fetch-")]
    with pytest.raises(CancelledError):
        disk.read_at(0, 1)
