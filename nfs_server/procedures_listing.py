"""READDIR and READDIRPLUS.

On the wire "." has cookie 1 and ".." cookie 2; a tree's cookies follow, moved by 2. They are
stable, so the cookie verifier is constant and a folder that changed costs no client its place.
Source: RFC 1813 sections 3.3.16 and 3.3.17.
"""

from __future__ import annotations

from collections.abc import Iterator

from nfs_server import xdr
from nfs_server.errors import VfsError
from nfs_server.protocol import VERIFIER_BYTES, FileType, Status
from nfs_server.request import Request
from nfs_server.results import Target, post_op
from nfs_server.vfs import Buffer, Entry

_DOTS = 2
_NO_VERIFIER = bytes(VERIFIER_BYTES)
_BATCH = 128
_REPLY_BYTES_MAX = 1 << 20
_COOKIE_MAX = (1 << 64) - 1


def readdir(request: Request) -> list[Buffer]:
    folder = request.tells(request.target())
    cookie, _ = request.arguments.u64(), request.arguments.fixed(VERIFIER_BYTES)
    count = request.arguments.u32()
    request.arguments.finish()
    return _listing(request, folder, cookie, count, count, plus=False)


def readdirplus(request: Request) -> list[Buffer]:
    folder = request.tells(request.target())
    cookie, _ = request.arguments.u64(), request.arguments.fixed(VERIFIER_BYTES)
    names_count, count = request.arguments.u32(), request.arguments.u32()
    request.arguments.finish()
    return _listing(request, folder, cookie, names_count, count, plus=True)


def _listing(
    request: Request, folder: Target, cookie: int, names_count: int, count: int, *, plus: bool
) -> list[Buffer]:
    if folder.attributes().type is not FileType.DIRECTORY:
        raise VfsError(Status.NOTDIR)
    head = post_op(folder) + _NO_VERIFIER
    out: list[Buffer] = [head]
    room = min(count, _REPLY_BYTES_MAX) - len(head) - 2 * len(xdr.FALSE)
    names_room = min(names_count, _REPLY_BYTES_MAX)
    complete = True
    for entry in _entries(folder, cookie):
        words = xdr.TRUE + _plain(entry)
        names_room -= len(words)
        if plus:
            file = folder.sibling(entry.number)
            words += post_op(file) + xdr.TRUE + xdr.opaque(request.handle(file))
        room -= len(words)
        if room < 0 or (names_room < 0 and len(out) > 1):
            complete = False
            break
        out.append(words)
    if room < 0 and len(out) == 1:
        raise VfsError(Status.TOOSMALL)
    out.append(xdr.FALSE + (xdr.TRUE if complete else xdr.FALSE))
    return out


def _plain(entry: Entry) -> bytes:
    return xdr.U64.pack(entry.number) + xdr.opaque(entry.name) + xdr.U64.pack(entry.cookie)


def _entries(folder: Target, cookie: int) -> Iterator[Entry]:
    """Everything after `cookie`, with cookies as on the wire."""
    tree = folder.tree
    if cookie < 1:
        yield Entry(name=b".", number=folder.number, cookie=1)
    if cookie < _DOTS:
        yield Entry(name=b"..", number=tree.parent(folder.number), cookie=2)
    after = max(cookie - _DOTS, 0)
    while True:
        batch = tree.list(folder.number, after, _BATCH)
        for entry in batch:
            yield Entry(name=entry.name, number=entry.number, cookie=entry.cookie + _DOTS)
        if len(batch) < _BATCH:
            return
        after = batch[-1].cookie
