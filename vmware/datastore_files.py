"""Small files of a datastore, read whole: .vmx, .nvram. Disks have transports.

Source: design notes section 4b. Blocks; keeps no state.
"""

from __future__ import annotations

from http import HTTPStatus

from vmware.datastore_path import DatastorePath
from vmware.errors import FileFaultError
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
