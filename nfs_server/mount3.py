"""MOUNT version 3, and MOUNT version 1's refusal: a path becomes the handle of a tree's root.

No mount state is kept: handles decode without it, so nothing is lost with the server.
Source: RFC 1813 appendix I.
"""

from __future__ import annotations

from nfs_server import xdr
from nfs_server.exports import normal_path
from nfs_server.protocol import PATH_BYTES_MAX, AuthFlavor, MountProcedure, Status
from nfs_server.request import Request
from nfs_server.results import OK, status_word
from nfs_server.vfs import Buffer

_FLAVORS = xdr.U32.pack(2) + xdr.U32.pack(AuthFlavor.SYS) + xdr.U32.pack(AuthFlavor.NONE)


def serve(procedure: int, request: Request) -> list[Buffer] | None:
    """The body of the reply; None for a procedure that there is not. Raises XdrError."""
    if procedure == MountProcedure.MNT:
        return _mount(request)
    if procedure == MountProcedure.UMNT:
        request.arguments.opaque(PATH_BYTES_MAX)
    request.arguments.finish()
    if procedure in (MountProcedure.NULL, MountProcedure.UMNT, MountProcedure.UMNTALL):
        return []
    if procedure == MountProcedure.DUMP:
        return [xdr.FALSE]
    if procedure == MountProcedure.EXPORT:
        return [_export_list(request)]
    return None


def _mount(request: Request) -> list[Buffer]:
    raw = request.arguments.opaque(PATH_BYTES_MAX)
    request.arguments.finish()
    try:
        path = normal_path(raw.decode())
    except UnicodeDecodeError:
        return [status_word(Status.NOENT)]
    export = request.shared.exports().by_path(path)
    if export is None:
        return [status_word(Status.NOENT)]
    if not export.admits(request.client):
        return [status_word(Status.ACCES)]
    handle = request.shared.handles.encode(export.tree_id, export.tree.root)
    return [OK, xdr.opaque(handle), _FLAVORS]


def _export_list(request: Request) -> bytes:
    """Only what the client may mount; others need not know of it."""
    words = []
    for export in request.shared.exports().exports:
        if export.admits(request.client):
            words += [xdr.TRUE, xdr.opaque(export.path.encode())]
            for network in export.clients:
                words += [xdr.TRUE, xdr.opaque(str(network).encode())]
            words.append(xdr.FALSE)
    return b"".join([*words, xdr.FALSE])
