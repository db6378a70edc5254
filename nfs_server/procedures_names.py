"""LOOKUP, READLINK, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK.

Source: RFC 1813 sections 3.3.3, 3.3.5, 3.3.8 to 3.3.15.
"""

from __future__ import annotations

from dataclasses import replace

from nfs_server import xdr
from nfs_server.errors import VfsError, XdrError
from nfs_server.protocol import (
    SIZE_MAX,
    SYMLINK_BYTES_MAX,
    VERIFIER_BYTES,
    CreateHow,
    FileType,
    Status,
)
from nfs_server.request import Request, check_lookup_name, check_name
from nfs_server.results import ABSENT_WCC, Before, Target, post_op
from nfs_server.vfs import AttributeChanges, Buffer


def lookup(request: Request) -> list[Buffer]:
    folder = request.tells(request.target())
    name = request.name()
    request.arguments.finish()
    if folder.attributes().type is not FileType.DIRECTORY:
        raise VfsError(Status.NOTDIR)
    tree = folder.tree
    if name == b".":
        number = folder.number
    elif name == b"..":
        number = tree.parent(folder.number)
    else:
        number = tree.lookup(folder.number, check_lookup_name(name))
    found = folder.sibling(number)
    return [xdr.opaque(request.handle(found)), post_op(found), post_op(folder)]


def readlink(request: Request) -> list[Buffer]:
    target = request.tells(request.target())
    request.arguments.finish()
    if target.attributes().type is not FileType.SYMLINK:
        raise VfsError(Status.INVAL)
    return [post_op(target), xdr.opaque(target.tree.read_symlink(target.number))]


def create(request: Request) -> list[Buffer]:
    folder = request.target()
    before = request.changing(folder)
    name = request.name()
    how = request.arguments.u32()
    if how == CreateHow.EXCLUSIVE:
        verifier = request.arguments.fixed(VERIFIER_BYTES)
        request.arguments.finish()
        owned = AttributeChanges(uid=request.uid, gid=request.gid)
        number = folder.tree.create(folder.number, _new_name(name), owned, exclusive=verifier)
        return _made(request, folder.sibling(number), before)
    if how not in (CreateHow.UNCHECKED, CreateHow.GUARDED):
        raise XdrError(f"createmode {how}")
    changes = request.changes()
    request.arguments.finish()
    _new_name(name)
    try:
        number = folder.tree.create(folder.number, name, _owned(request, changes))
    except VfsError as error:
        if error.status is not Status.EXIST or how == CreateHow.GUARDED:
            raise
        number = folder.tree.lookup(folder.number, name)
        _reuse(folder.sibling(number), changes)
    return _made(request, folder.sibling(number), before)


def _reuse(file: Target, changes: AttributeChanges) -> None:
    """An UNCHECKED create of a file that is there sets its size, if one was given, no more."""
    if file.attributes().type is not FileType.REGULAR:
        raise VfsError(Status.EXIST)
    if changes.size_bytes is not None:
        file.tree.set_attributes(file.number, AttributeChanges(size_bytes=changes.size_bytes))


def mkdir(request: Request) -> list[Buffer]:
    folder = request.target()
    before = request.changing(folder)
    name, changes = request.name(), request.changes()
    request.arguments.finish()
    owned = _owned(request, changes)
    number = folder.tree.make_folder(folder.number, _new_name(name), owned)
    return _made(request, folder.sibling(number), before)


def symlink(request: Request) -> list[Buffer]:
    folder = request.target()
    before = request.changing(folder)
    name, changes = request.name(), request.changes()
    target = request.arguments.opaque(SIZE_MAX)
    request.arguments.finish()
    if len(target) > SYMLINK_BYTES_MAX:
        raise VfsError(Status.NAMETOOLONG)
    if not target or b"\0" in target:
        raise VfsError(Status.INVAL)
    owned = _owned(request, changes)
    number = folder.tree.make_symlink(folder.number, _new_name(name), target, owned)
    return _made(request, folder.sibling(number), before)


def mknod(request: Request) -> list[Buffer]:
    """Devices, sockets and FIFOs have no place on a datastore."""
    request.changing(request.target())
    raise VfsError(Status.NOTSUPP)


def remove(request: Request) -> list[Buffer]:
    folder = request.target()
    before = request.changing(folder)
    name = request.name()
    request.arguments.finish()
    folder.tree.remove(folder.number, check_name(name))
    return [before.wcc()]


def rmdir(request: Request) -> list[Buffer]:
    folder = request.target()
    before = request.changing(folder)
    name = request.name()
    request.arguments.finish()
    if name == b"..":
        raise VfsError(Status.EXIST)  # RFC 1813 section 3.3.13; "." is INVAL
    folder.tree.remove_folder(folder.number, check_name(name))
    return [before.wcc()]


def rename(request: Request) -> list[Buffer]:
    folder, name = request.target(), request.name()
    new_folder, new_name = request.target(), request.name()
    request.arguments.finish()
    before, new_before = request.changing_both(folder, new_folder)
    if folder.tree_id != new_folder.tree_id:
        raise VfsError(Status.XDEV)
    check_name(name)
    check_name(new_name)
    folder.tree.rename(folder.number, name, new_folder.number, new_name)
    return [before.wcc(), new_before.wcc()]


def link(request: Request) -> list[Buffer]:
    file, folder, name = request.target(), request.target(), request.name()
    request.arguments.finish()
    request.on_failure = lambda: post_op(file) + ABSENT_WCC
    before = request.changing(folder, lambda wcc: post_op(file) + wcc)
    if file.tree_id != folder.tree_id:
        raise VfsError(Status.XDEV)
    folder.tree.link(file.number, folder.number, _new_name(name))
    return [post_op(file), before.wcc()]


def _new_name(name: bytes) -> bytes:
    if name in (b".", b".."):
        raise VfsError(Status.EXIST)
    return check_name(name)


def _owned(request: Request, changes: AttributeChanges) -> AttributeChanges:
    """What is made belongs to the caller, unless it says otherwise."""
    return replace(
        changes,
        uid=request.uid if changes.uid is None else changes.uid,
        gid=request.gid if changes.gid is None else changes.gid,
    )


def _made(request: Request, made: Target, before: Before) -> list[Buffer]:
    return [xdr.TRUE, xdr.opaque(request.handle(made)), post_op(made), before.wcc()]
