"""Mounting an NFS export as an ESXi host does: portmapper, MOUNT, then NFS on a connection.

No port can be given: the portmapper at port 111 of the server says where MOUNT v3 and NFS v3 are,
over TCP. Blocks; any thread. Source: RFC 1813 appendix I; RFC 1833; design notes on vSphere,
section 5, and on exports, B.2 and B.3.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from dataclasses import dataclass

from lab.esx.errors import HostError
from lab.esx.nfs_client import NfsClient, checked_handle
from lab.esx.nfs_rpc import RpcConnection, call_once
from lab.esx.nfs_xdr import opaque, u32

_PORTMAP, _MOUNT, _NFS = (100000, 2), (100005, 3), (100003, 3)
_GETPORT, _MNT, _UMNT = 3, 1, 3
_TCP = 6
_PORTMAP_PORT = 111
_AUTH_SYS = 1
_FLAVORS_MAX = 32
_PATH_BYTES_MAX = 1024


class MountFailedError(HostError):
    """The server cannot be reached, or it refuses."""

    fault = "PlatformConfigFault"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """An export as the host's table has it: two hosts mean one volume by the very same text."""

    host: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mounted:
    client: NfsClient
    connection: RpcConnection
    address: str
    mount_port: int


def mount(remote: Remote, *, source: str, timeout_s: float) -> Mounted:
    """`source` is the host's vmkernel address. Raises MountFailedError; nothing is left open."""
    try:
        return _mount(remote, source, timeout_s)
    except MountFailedError:
        raise
    except HostError as error:
        raise MountFailedError(f"cannot mount {remote.host}:{remote.path}: {error}") from error


def _mount(remote: Remote, source: str, timeout_s: float) -> Mounted:
    address = _resolve(remote.host)
    source = usable_source(source, address)
    mount_port = _port_of(address, *_MOUNT, source=source)
    reader = call_once(
        *(address, mount_port, *_MOUNT, _MNT, opaque(remote.path.encode()[:_PATH_BYTES_MAX])),
        source=source,
    )
    if status := reader.u32():
        raise MountFailedError(
            f"the server {remote.host} refuses to export {remote.path}: status {status}"
        )
    root = checked_handle(reader.opaque(64))
    flavors = [reader.u32() for _ in range(min(reader.u32(), _FLAVORS_MAX))]
    reader.finish()
    if flavors and _AUTH_SYS not in flavors:
        raise MountFailedError(f"{remote.host}:{remote.path} does not admit AUTH_SYS")
    connection = RpcConnection(address, _port_of(address, *_NFS, source=source), source=source)
    try:
        client = NfsClient(connection, root, timeout_s=timeout_s)
    except BaseException:
        connection.close()
        raise
    return Mounted(client=client, connection=connection, address=address, mount_port=mount_port)


def unmount(mounted: Mounted, remote: Remote, *, source: str) -> None:
    """Tell the server, if it listens, and close the connection."""
    mounted.connection.close()
    with contextlib.suppress(HostError):
        call_once(
            *(mounted.address, mounted.mount_port, *_MOUNT, _UMNT, opaque(remote.path.encode())),
            source=usable_source(source, mounted.address),
            timeout_s=1.0,
        )


def usable_source(source: str, address: str) -> str:
    """The lab's hosts have loopback addresses, from which only loopback can be reached."""
    return source if source and ipaddress.ip_address(address).is_loopback else ""


def _resolve(host: str) -> str:
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise MountFailedError(f"cannot resolve {host}") from error
    return str(found[0][4][0])


def _port_of(address: str, program: int, version: int, *, source: str) -> int:
    asked = u32(program, version, _TCP, 0)
    reader = call_once(address, _PORTMAP_PORT, *_PORTMAP, _GETPORT, asked, source=source)
    port = reader.u32()
    reader.finish()
    if not 0 < port < 65536:
        raise MountFailedError(f"{address} has no program {program} version {version} over TCP")
    return port
