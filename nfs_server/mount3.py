"""MOUNT version 3, and MOUNT version 1's refusal: a path becomes the handle of a tree's root.

No mount state is kept: handles decode without it, so nothing is lost with the server.
Source: RFC 1813 appendix I.
"""

from __future__ import annotations

from nfs_server import xdr
from nfs_server.errors import VfsError
from nfs_server.exports import normal_path
from nfs_server.protocol import PATH_BYTES_MAX, AuthFlavor, FileType, MountProcedure, Status
from nfs_server.request import Request, check_name
from nfs_server.results import OK, status_word
from nfs_server.vfs import Buffer, Tree

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
    found = request.shared.exports().by_path(path)
    if found is None:
        return [status_word(Status.NOENT)]
    export, names = found
    if not export.admits(request.client):
        return [status_word(Status.ACCES)]
    try:
        number = _folder_inside(export.tree, names)
    except VfsError as error:
        return [status_word(error.status)]
    handle = request.shared.handles.encode(export.tree_id, number)
    return [OK, xdr.opaque(handle), _FLAVORS]


def _folder_inside(tree: Tree, names: list[bytes]) -> int:
    """A folder below the root may be mounted too: libnfs does for every URL of a file."""
    number = tree.root
    for name in names:
        number = tree.lookup(number, check_name(name))
    if tree.attributes(number).type is not FileType.DIRECTORY:
        raise VfsError(Status.NOTDIR)
    return number


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
