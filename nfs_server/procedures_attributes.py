"""GETATTR, SETATTR, ACCESS, FSSTAT, FSINFO, PATHCONF.

Permission bits are kept for the clients and not enforced: a tree belongs to the hypervisors that
its export admits, whose uid 0 must be able to do everything (no root squash).
Source: RFC 1813 sections 3.3.1, 3.3.2, 3.3.4, 3.3.18 to 3.3.20.
"""

from __future__ import annotations

import threading
from struct import Struct

from nfs_server import xdr
from nfs_server.errors import VfsError
from nfs_server.protocol import NAME_BYTES_MAX, SIZE_MAX, Access, FileType, FsProperty, Status
from nfs_server.request import Request
from nfs_server.results import fattr, post_op
from nfs_server.vfs import Buffer

_FSSTAT = Struct(">QQQQQQI")
_FSINFO = Struct(">IIIIIIIQIII")
_PATHCONF = Struct(">IIIIII")
_MULTIPLE_BYTES = 4096
_LISTING_BYTES = 64 * 1024
_PROPERTIES = FsProperty.LINK | FsProperty.SYMLINK | FsProperty.HOMOGENEOUS | FsProperty.CANSETTIME
_OF_FOLDER = Access.READ | Access.LOOKUP | Access.MODIFY | Access.EXTEND | Access.DELETE
_OF_FILE = Access.READ | Access.MODIFY | Access.EXTEND
_CHANGING = Access.MODIFY | Access.EXTEND | Access.DELETE
_LINKS_MAX = 1024
# Between looking at ctime and changing; a file that stalls holds up few others.
_GUARDS = tuple(threading.Lock() for _ in range(61))


def getattr_(request: Request) -> list[Buffer]:
    target = request.target()
    request.arguments.finish()
    return [fattr(target.attributes(), target.tree_id)]


def setattr_(request: Request) -> list[Buffer]:
    target = request.target()
    before = request.changing(target)
    changes = request.changes()
    expected_ns = request.time_ns() if request.arguments.boolean() else None
    request.arguments.finish()
    with _GUARDS[target.number % len(_GUARDS)]:
        if expected_ns is not None and target.attributes().changed_ns != expected_ns:
            raise VfsError(Status.NOT_SYNC)
        target.tree.set_attributes(target.number, changes)
    return [before.wcc()]


def access(request: Request) -> list[Buffer]:
    target = request.tells(request.target())
    wanted = request.arguments.u32()
    request.arguments.finish()
    attributes = target.attributes()
    granted = _OF_FOLDER if attributes.type is FileType.DIRECTORY else _OF_FILE
    if attributes.type is not FileType.DIRECTORY and attributes.mode & 0o111:
        granted |= Access.EXECUTE
    if target.tree.read_only:
        granted &= ~_CHANGING
    return [post_op(target), xdr.U32.pack(wanted & granted)]


def fsstat(request: Request) -> list[Buffer]:
    target = request.tells(request.target())
    request.arguments.finish()
    target.attributes()
    space = target.tree.space()
    figures = _FSSTAT.pack(
        space.total_bytes,
        space.free_bytes,
        space.free_bytes,
        space.total_files,
        space.free_files,
        space.free_files,
        0,
    )
    return [post_op(target), figures]


def fsinfo(request: Request) -> list[Buffer]:
    """The values that Linux, libnfs and qemu were seen to take; ESXi clamps them itself."""
    target = request.tells(request.target())
    request.arguments.finish()
    target.attributes()
    most = request.shared.transfer_bytes_max
    figures = _FSINFO.pack(
        *(most, most, _MULTIPLE_BYTES),
        *(most, most, _MULTIPLE_BYTES),
        *(_LISTING_BYTES, SIZE_MAX, 0, 1, _PROPERTIES),
    )
    return [post_op(target), figures]


def pathconf(request: Request) -> list[Buffer]:
    target = request.tells(request.target())
    request.arguments.finish()
    target.attributes()
    return [post_op(target), _PATHCONF.pack(_LINKS_MAX, NAME_BYTES_MAX, 1, 1, 0, 1)]
