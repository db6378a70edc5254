"""Small files of a datastore, read and written whole: .vmx, .nvram. Disks have transports.

Source: design notes section 4b. Blocks; keeps no state.
"""

from __future__ import annotations

from http import HTTPStatus

from vmware.datastore_path import DatastorePath
from vmware.errors import FileFaultError, NoSpaceError
from vmware.faults import translated
from vmware.session import Session
from vmware.transports.datastore_routes import ServerRoute
from vmware.transports.http_range import check_status


def read_small_file(
    session: Session, datacenter_path: str, file: DatastorePath, max_bytes: int
) -> bytes:
    """The whole file through the server of `session`.

    Raises:
        FileFaultError: there is no such file, or it is larger than `max_bytes`.
        VsphereError: it cannot be read now.
    """
    what = f"read {file}"
    route = ServerRoute(session, datacenter_path)
    route.renew()
    opened = route.open(file, "GET", None)
    try:
        with translated(what):
            opened.connection.request("GET", opened.target, headers=dict(opened.headers))
            response = opened.connection.getresponse()
            check_status(response, HTTPStatus.OK)
            content = response.read(max_bytes + 1)
    finally:
        opened.connection.close()
    if len(content) > max_bytes:
        raise FileFaultError(f"{what}: it is larger than {max_bytes} bytes")
    return content


def write_small_file(
    session: Session, datacenter_path: str, file: DatastorePath, content: bytes
) -> None:
    """Create or replace the file, in a folder that is there. Its VM must be off.

    Raises:
        NoSpaceError: the datastore is full.
        VsphereError: it cannot be written; it may hold what it held, or be gone.
    """
    what = f"write {file}"
    route = ServerRoute(session, datacenter_path)
    route.renew()
    opened = route.open(file, "PUT", None)
    headers = {**opened.headers, "Content-Type": "application/octet-stream"}
    try:
        with translated(what):
            opened.connection.request("PUT", opened.target, body=content, headers=headers)
            response = opened.connection.getresponse()
    finally:
        opened.connection.close()
    if response.status == HTTPStatus.INSUFFICIENT_STORAGE:
        raise NoSpaceError(f"{what}: no space on the datastore")
    if response.status not in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.NO_CONTENT):
        check_status(response, HTTPStatus.CREATED)
