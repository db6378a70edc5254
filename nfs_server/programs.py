"""Which program, version and procedure a call names, and what serves it.

A port serves some programs: NFS and MOUNT on one, portmap on 111. What it does not serve gets the
reply that tells a client what to try instead: a Linux client that asks for version 4 goes on with
3 only after PROG_MISMATCH.
"""

from __future__ import annotations

from dataclasses import dataclass

from nfs_server import mount3, rpc
from nfs_server.errors import XdrError
from nfs_server.nfs3 import SERVICES, Service
from nfs_server.portmap import Portmap
from nfs_server.protocol import (
    MOUNT_PROGRAM,
    MOUNT_VERSION,
    NFS_PROGRAM,
    NFS_VERSION,
    PORTMAP_PROGRAM,
    PORTMAP_VERSION,
    AcceptStatus,
    Procedure,
)
from nfs_server.request import Request
from nfs_server.rpc import Call
from nfs_server.vfs import Buffer

_VERSIONS = {
    NFS_PROGRAM: NFS_VERSION,
    MOUNT_PROGRAM: MOUNT_VERSION,
    PORTMAP_PROGRAM: PORTMAP_VERSION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What one port serves."""

    numbers: frozenset[int]
    portmap: Portmap

    def find(self, call: Call, request: Request) -> Service | list[Buffer]:
        """The NFS service that the call is for, or the whole reply to it."""
        if call.program not in self.numbers:
            return rpc.failure(call.xid, AcceptStatus.PROG_UNAVAIL)
        version = _VERSIONS[call.program]
        if call.version != version:
            return rpc.failure(call.xid, AcceptStatus.PROG_MISMATCH, version, version)
        if call.program == NFS_PROGRAM:
            if call.procedure == Procedure.NULL:
                return rpc.success(call.xid, [], 0)
            service = SERVICES.get(call.procedure)
            return service or rpc.failure(call.xid, AcceptStatus.PROC_UNAVAIL)
        try:
            body = self._answer(call, request)
        except XdrError:
            return rpc.failure(call.xid, AcceptStatus.GARBAGE_ARGS)
        if body is None:
            return rpc.failure(call.xid, AcceptStatus.PROC_UNAVAIL)
        return rpc.success(call.xid, body, sum(map(len, body)))

    def _answer(self, call: Call, request: Request) -> list[Buffer] | None:
        if call.program == MOUNT_PROGRAM:
            return mount3.serve(call.procedure, request)
        return self.portmap.serve(call.procedure, request.arguments)
