"""`/folder` of the practice vCenter and its hosts, judged by the standard HTTP client."""

from __future__ import annotations

import base64
import http.client
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.data_plane.place import Place
from lab.esx.file_locks import LockMode
from lab.faults import FaultName
from tests.support.lab_data_plane import COOKIE, PASSWORD, ROOT_PASSWORD, USER, Plane, running

FLAT = "/folder/web%201/web-flat.vmdk"
ON_VCENTER = "?dcPath=Site%2FDC&dsName=store%201"
ON_HOST = "?dsName=store+1"
SESSION = {"Cookie": f'vmware_soap_session="{COOKIE}"'}
DATA = os.urandom(3 << 20) + b"tail"


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    with running(tmp_path) as plane:
        (plane.root / "web 1").mkdir()
        (plane.root / "web 1" / "web-flat.vmdk").write_bytes(DATA)
        yield plane


def ask(
    plane: Plane,
    method: str,
    target: str,
    headers: dict[str, str] | None = None,
    *,
    body: bytes | Iterator[bytes] | None = None,
    at: Place | None = None,
) -> tuple[http.client.HTTPResponse, bytes]:
    """One request on a connection of its own; the session's cookie unless headers are given."""
    connection = plane.connect(at or plane.vcenter)
    try:
        connection.request(
            method, target, body=body, headers=SESSION if headers is None else headers
        )
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def basic(user: str, password: str) -> dict[str, str]:
    token = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"Authorization": f"Basic {token}"}


def test_a_file_is_read_whole_and_by_range(plane: Plane) -> None:
    """GET is the bytes; a single Range is 206 with its place; HEAD tells the size."""
    response, body = ask(plane, "GET", FLAT + ON_VCENTER)
    assert (response.status, body) == (200, DATA)
    for header, part in (
        ("bytes=0-511", DATA[:512]),
        ("bytes=1048576-", DATA[1 << 20 :]),
        ("bytes=-4", b"tail"),
        ("bytes=3145728-99999999", b"tail"),
    ):
        response, body = ask(plane, "GET", FLAT + ON_VCENTER, {**SESSION, "Range": header})
        assert (response.status, body) == (206, part)
        start = len(DATA) - len(part) if not header.startswith("bytes=0") else 0
        where = f"bytes {start}-{start + len(part) - 1}/{len(DATA)}"
        assert response.getheader("Content-Range") == where
    response, body = ask(plane, "HEAD", FLAT + ON_VCENTER)
    assert (response.status, body) == (200, b"")
    assert response.getheader("Content-Length") == str(len(DATA))


def test_ranges_that_hold_nothing_are_refused_and_odd_ones_ignored(plane: Plane) -> None:
    """Behind the end: 416 with the size. Several ranges, or none: the whole file."""
    behind = {**SESSION, "Range": f"bytes={len(DATA)}-"}
    response, _ = ask(plane, "GET", FLAT + ON_VCENTER, behind)
    assert response.status == 416
    assert response.getheader("Content-Range") == f"bytes */{len(DATA)}"
    for odd in ("bytes=0-1,4-5", "bytes=5-2", "lines=1-2"):
        response, body = ask(plane, "GET", FLAT + ON_VCENTER, {**SESSION, "Range": odd})
        assert (response.status, len(body)) == (200, len(DATA))


def test_many_ranges_share_a_connection(plane: Plane) -> None:
    """With a session the connection lives on."""
    connection = plane.connect(plane.vcenter)
    for start in range(0, 1 << 20, 1 << 18):
        header = {**SESSION, "Range": f"bytes={start}-{start + 99}"}
        connection.request("GET", FLAT + ON_VCENTER, headers=header)
        assert connection.getresponse().read() == DATA[start : start + 100]
        sock = connection.sock
        assert sock is not None
    connection.close()


def test_nobody_reads_without_logging_in(plane: Plane) -> None:
    """No cookie, a dead one, or a wrong password: 401. The host knows only its own root."""
    target = FLAT + ON_VCENTER
    assert ask(plane, "GET", target, {})[0].status == 401
    assert ask(plane, "GET", target, {"Cookie": "vmware_soap_session=dead"})[0].status == 401
    assert ask(plane, "GET", target, basic(USER, "wrong"))[0].status == 401
    assert ask(plane, "GET", target, basic(USER, PASSWORD))[0].status == 200
    on_host = FLAT + ON_HOST
    assert ask(plane, "GET", on_host, SESSION, at=plane.host)[0].status == 401
    assert ask(plane, "GET", on_host, basic(USER, PASSWORD), at=plane.host)[0].status == 401
    assert ask(plane, "GET", on_host, basic("root", ROOT_PASSWORD), at=plane.host)[0].status == 200


def test_a_ticket_is_good_for_one_request(plane: Plane) -> None:
    """One ticket, one request, one connection; then 401."""
    url = f"https://{plane.host.authority}{FLAT}{ON_HOST}"
    ticket = plane.tickets.issue(url, "GET", USER).ticket_id
    cookie = {"Cookie": f"vmware_cgi_ticket={ticket}", "Range": "bytes=0-9"}
    response, body = ask(plane, "GET", FLAT + ON_HOST, cookie, at=plane.host)
    assert (response.status, body) == (206, DATA[:10])
    assert response.getheader("Connection") == "close"
    assert ask(plane, "GET", FLAT + ON_HOST, cookie, at=plane.host)[0].status == 401


@pytest.mark.parametrize("what", ["method", "path", "datastore", "authority"])
def test_a_ticket_for_something_else_is_refused(plane: Plane, what: str) -> None:
    """Method, path, query and host must be those of the ticket."""
    authority = plane.host.authority
    url = {
        "method": f"https://{authority}{FLAT}{ON_HOST}",
        "path": f"https://{authority}/folder/web%201/web.vmdk{ON_HOST}",
        "datastore": f"https://{authority}{FLAT}?dsName=other",
        "authority": f"https://{plane.vcenter.authority}{FLAT}{ON_HOST}",
    }[what]
    verb = "PUT" if what == "method" else "GET"
    ticket = plane.tickets.issue(url, verb, USER).ticket_id
    cookie = {"Cookie": f"vmware_cgi_ticket={ticket}"}
    assert ask(plane, "GET", FLAT + ON_HOST, cookie, at=plane.host)[0].status == 401


def test_the_datacenter_is_named_on_vcenter_and_not_on_a_host(plane: Plane) -> None:
    """vCenter knows no file without dcPath; a host no datacenter but its own."""
    root = basic("root", ROOT_PASSWORD)
    response, body = ask(plane, "GET", FLAT + ON_HOST)
    assert (response.status, body[:6]) == (404, b"<html>")
    assert ask(plane, "GET", FLAT + ON_VCENTER, root, at=plane.host)[0].status == 404
    own = "?dcPath=ha-datacenter&dsName=store%201"
    assert ask(plane, "GET", FLAT + own, root, at=plane.host)[0].status == 200


def test_what_is_not_there_is_404_and_nothing_leaves_the_datastore(plane: Plane) -> None:
    """No file, no datastore, no datacenter; dot parts and links do not get out."""
    (plane.root.parent / "outside").write_bytes(b"secret")
    (plane.root / "link").symlink_to(plane.root.parent / "outside")
    for target in (
        "/folder/web%201/none.vmdk" + ON_VCENTER,
        FLAT + "?dcPath=Site%2FDC&dsName=other",
        FLAT + "?dcPath=DC&dsName=store%201",
        "/folder/../outside" + ON_VCENTER,
        "/folder/web%201/..%2F..%2Foutside" + ON_VCENTER,
        "/folder/%2e%2e/outside" + ON_VCENTER,
        "/folder//etc/passwd" + ON_VCENTER,
        "/folder/link" + ON_VCENTER,
        "/elsewhere" + ON_VCENTER,
    ):
        response, body = ask(plane, "GET", target)
        assert response.status == 404, target
        assert b"secret" not in body


def test_folders_are_listed(plane: Plane) -> None:
    """A GET of a folder is HTML with links that work, from the datacenters down."""
    for target, link in (
        ("/folder", "/folder?dcPath=Site%2FDC"),
        ("/folder?dcPath=Site/DC", "/folder?dcPath=Site%2FDC&amp;dsName=store+1"),
        ("/folder" + ON_VCENTER, "/folder/web%201/?dcPath=Site%2FDC&amp;dsName=store+1"),
        ("/folder/web%201" + ON_VCENTER, FLAT + "?dcPath=Site%2FDC&amp;dsName=store+1"),
    ):
        response, body = ask(plane, "GET", target)
        assert response.status == 200
        assert response.getheader("Content-Type", "").startswith("text/html")
        assert f'href="{link}"'.encode() in body
    assert ask(plane, "GET", FLAT + "?dcPath=Site%2FDC&dsName=store+1")[1] == DATA


def test_privileges_are_enforced(plane: Plane) -> None:
    """Browse shows folders and sizes; the bytes need FileManagement."""
    plane.privileges.refused = {"Datastore.FileManagement"}
    assert ask(plane, "GET", "/folder/web%201" + ON_VCENTER)[0].status == 200
    assert ask(plane, "HEAD", FLAT + ON_VCENTER)[0].status == 200
    for method in ("GET", "PUT", "DELETE"):
        assert ask(plane, method, FLAT + ON_VCENTER, body=b"")[0].status == 403
    plane.privileges.refused = {"Datastore.Browse"}
    assert ask(plane, "HEAD", FLAT + ON_VCENTER)[0].status == 403
    assert (plane.root / "web 1" / "web-flat.vmdk").read_bytes() == DATA


def test_a_file_in_use_is_500(plane: Plane) -> None:
    """Exclusive excludes readers; a shared holder only writers."""
    path = plane.datastore.path("web 1/web-flat.vmdk")
    with plane.locks.held("vm-1", [(path, LockMode.EXCLUSIVE)]):
        assert ask(plane, "GET", FLAT + ON_VCENTER)[0].status == 500
    with plane.locks.held("vm-1", [(path, LockMode.SHARED)]):
        assert ask(plane, "GET", FLAT + ON_VCENTER)[1] == DATA
        assert ask(plane, "PUT", FLAT + ON_VCENTER, body=b"x")[0].status == 500
        assert ask(plane, "DELETE", FLAT + ON_VCENTER)[0].status == 500
    assert plane.locks.all_locks() == []
    assert (plane.root / "web 1" / "web-flat.vmdk").read_bytes() == DATA


def test_files_are_put_and_deleted(plane: Plane) -> None:
    """By length or chunked, new or over an old one; a broken upload leaves the old one."""
    target, place = "/folder/web%201/a.nvram" + ON_VCENTER, plane.root / "web 1" / "a.nvram"
    assert ask(plane, "PUT", target, body=b"one")[0].status == 201
    assert place.read_bytes() == b"one"
    pieces = (DATA[start : start + 100_000] for start in range(0, len(DATA), 100_000))
    assert ask(plane, "PUT", target, body=pieces)[0].status == 200
    assert place.read_bytes() == DATA
    connection = plane.connect(plane.vcenter)
    connection.putrequest("PUT", target)
    connection.putheader("Cookie", SESSION["Cookie"])
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders(b"5\r\nwrong\r\nzz\r\n")
    with pytest.raises(http.client.RemoteDisconnected):
        connection.getresponse()
    connection.close()
    connection = plane.connect(plane.vcenter)
    connection.putrequest("PUT", target)
    connection.putheader("Cookie", SESSION["Cookie"])
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()
    assert place.read_bytes() == DATA
    assert sorted(entry.name for entry in place.parent.iterdir()) == ["a.nvram", "web-flat.vmdk"]
    assert ask(plane, "PUT", "/folder/none/a.nvram" + ON_VCENTER, body=b"x")[0].status == 404
    assert ask(plane, "PUT", "/folder/web%201" + ON_VCENTER, body=b"x")[0].status == 404
    assert ask(plane, "DELETE", target)[0].status == 204
    assert not place.exists()


@pytest.mark.parametrize(
    "name", [FaultName.TRUNCATED_BODY, FaultName.RESET_MID_STREAM, FaultName.HTTP_500_MID_STREAM]
)
def test_a_body_can_break_in_the_middle(plane: Plane, name: FaultName) -> None:
    """The client has `amount` good bytes and then not what it was promised; the lock is gone."""
    plane.switches.arm(name, amount=1_500_000, host="vcenter", path="*-flat.vmdk")
    connection = plane.connect(plane.vcenter)
    connection.request("GET", FLAT + ON_VCENTER, headers=SESSION)
    response, got = connection.getresponse(), bytearray()
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        while len(got) < len(DATA):
            piece = response.read(65536)
            if not piece:
                raise http.client.IncompleteRead(bytes(got))
            got += piece
    connection.close()
    assert DATA.startswith(got[: min(len(got), 1_500_000)])
    assert plane.switches.fired(name) == 1
    assert ask(plane, "GET", FLAT + ON_VCENTER)[1] == DATA
    assert plane.locks.all_locks() == []


def test_a_host_can_die_and_be_unable(plane: Plane) -> None:
    """Reset before an answer, 500, 503: each once, then it works."""
    plane.switches.arm(FaultName.DYING_HOST, host="vcenter")
    with pytest.raises(ConnectionError):
        ask(plane, "GET", FLAT + ON_VCENTER)
    plane.switches.arm(FaultName.HTTP_500)
    plane.switches.arm(FaultName.HTTP_503)
    assert [ask(plane, "GET", FLAT + ON_VCENTER)[0].status for _ in range(3)] == [500, 503, 200]


def test_a_server_can_lie_about_ranges(plane: Plane) -> None:
    """A range ignored or misplaced, a flipped byte, the whole disk for its descriptor."""
    part = {**SESSION, "Range": "bytes=512-1023"}
    plane.switches.arm(FaultName.RANGE_IGNORED)
    response, body = ask(plane, "GET", FLAT + ON_VCENTER, part)
    assert (response.status, body) == (200, DATA)
    plane.switches.arm(FaultName.WRONG_RANGE)
    response, _ = ask(plane, "GET", FLAT + ON_VCENTER, part)
    assert response.getheader("Content-Range") == f"bytes 1024-1535/{len(DATA)}"
    plane.switches.arm(FaultName.CORRUPT_BODY, amount=100)
    _, body = ask(plane, "GET", FLAT + ON_VCENTER, part)
    assert [place for place in range(512) if body[place] != DATA[512 + place]] == [100]
    (plane.root / "web 1" / "web.vmdk").write_text("# Disk DescriptorFile\n")
    plane.switches.arm(FaultName.DESCRIPTOR_STREAMS_DISK)
    descriptor = "/folder/web%201/web.vmdk" + ON_VCENTER
    assert ask(plane, "GET", descriptor)[1] == DATA
    assert ask(plane, "GET", descriptor)[1].startswith(b"# Disk")


def test_a_full_datastore_takes_no_upload(plane: Plane) -> None:
    """507 after `amount` bytes, and nothing is left of the upload."""
    plane.switches.arm(FaultName.NO_SPACE, amount=1000)
    target = "/folder/web%201/new.vmdk" + ON_VCENTER
    assert ask(plane, "PUT", target, body=bytes(2000))[0].status == 507
    assert [entry.name for entry in (plane.root / "web 1").iterdir()] == ["web-flat.vmdk"]
