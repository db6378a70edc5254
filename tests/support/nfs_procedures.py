"""Every NFSv3 procedure as a call on `NfsClient`, with its whole reply decoded.

Each method returns a `Reply`; a reply with bytes missing or left over fails the test, so that every
use also checks the bodies of failures.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from tests.support.nfs_client import NO_CHANGES, NfsClient, Reader, opaque, u32, u64

OK, NOENT, IO, ACCES, EXIST = 0, 2, 5, 13, 17
NOTDIR, ISDIR, INVAL, FBIG, NOSPC, ROFS = 20, 21, 22, 27, 28, 30
NAMETOOLONG, NOTEMPTY, STALE = 63, 66, 70
BADHANDLE, NOT_SYNC, NOTSUPP, TOOSMALL = 10001, 10002, 10004, 10005

Attributes = dict[str, int]


@dataclass(slots=True)
class Wcc:
    before: dict[str, int] | None  # size, mtime, ctime
    after: Attributes | None


@dataclass(slots=True)
class Listed:
    name: bytes
    fileid: int
    cookie: int
    attributes: Attributes | None = None
    handle: bytes = b""


@dataclass(slots=True)
class Reply:
    status: int
    handle: bytes = b""
    attributes: Attributes | None = None  # of what the call is about
    folder: Attributes | None = None
    wcc: list[Wcc] = field(default_factory=list)
    data: bytes = b""
    eof: bool = False
    number: int = 0  # granted rights, written bytes
    listed: list[Listed] = field(default_factory=list)
    figures: tuple[int, ...] = ()


def changes(
    *,
    mode: int | None = None,
    uid: int | None = None,
    gid: int | None = None,
    size: int | None = None,
    atime: int | str | None = None,
    mtime: int | str | None = None,
) -> bytes:
    """sattr3; times in nanoseconds, or "now"."""
    words = b"".join(u32(0) if each is None else u32(1) + u32(each) for each in (mode, uid, gid))
    words += u32(0) if size is None else u32(1) + u64(size)
    for each in (atime, mtime):
        if each is None:
            words += u32(0)
        elif isinstance(each, str):
            words += u32(1)
        else:
            words += u32(2) + u32(each // 10**9) + u32(each % 10**9)
    return words


class NfsProcedures(NfsClient):
    def getattr(self, file: bytes) -> Reply:
        words = self.call(1, opaque(file))
        status = words.u32()
        return _done(words, Reply(status, attributes=None if status else words.attributes()))

    def setattr(self, file: bytes, words: bytes, *, guard_ns: int | None = None) -> Reply:
        guard = u32(0)
        if guard_ns is not None:
            guard = u32(1) + u32(guard_ns // 10**9) + u32(guard_ns % 10**9)
        return self._with_wcc(2, opaque(file) + words + guard)

    def find(self, folder: bytes, name: bytes) -> Reply:
        words = self.call(3, opaque(folder) + opaque(name))
        reply = Reply(words.u32())
        if reply.status == OK:
            reply.handle, reply.attributes = words.opaque(), words.post_op()
        reply.folder = words.post_op()
        return _done(words, reply)

    def access(self, file: bytes, wanted: int) -> Reply:
        words = self.call(4, opaque(file) + u32(wanted))
        reply = Reply(words.u32(), attributes=words.post_op())
        reply.number = words.u32() if reply.status == OK else 0
        return _done(words, reply)

    def readlink(self, file: bytes) -> Reply:
        words = self.call(5, opaque(file))
        reply = Reply(words.u32(), attributes=words.post_op())
        reply.data = words.opaque() if reply.status == OK else b""
        return _done(words, reply)

    def read_at(self, file: bytes, offset: int, count: int) -> Reply:
        words = self.call(6, opaque(file) + u64(offset) + u32(count))
        reply = Reply(words.u32(), attributes=words.post_op())
        if reply.status == OK:
            length, reply.eof, reply.data = words.u32(), bool(words.u32()), words.opaque()
            assert length == len(reply.data)
        return _done(words, reply)

    def write_at(self, file: bytes, offset: int, data: bytes, stable: int = 0) -> Reply:
        arguments = opaque(file) + u64(offset) + u32(len(data)) + u32(stable) + opaque(data)
        words = self.call(7, arguments)
        reply = Reply(words.u32(), wcc=[_wcc(words)])
        if reply.status == OK:
            reply.number = words.u32()
            assert words.u32() == 2, "it must be on disk, whatever was asked for"
            reply.data = words.fixed(8)
        return _done(words, reply)

    def make(self, folder: bytes, name: bytes, how: int = 1, words: bytes = NO_CHANGES) -> Reply:
        """CREATE; `how` 2 takes a verifier as `words`."""
        return self._making(8, opaque(folder) + opaque(name) + u32(how) + words)

    def mkdir(self, folder: bytes, name: bytes, words: bytes = NO_CHANGES) -> Reply:
        return self._making(9, opaque(folder) + opaque(name) + words)

    def symlink(self, folder: bytes, name: bytes, text: bytes) -> Reply:
        return self._making(10, opaque(folder) + opaque(name) + NO_CHANGES + opaque(text))

    def mknod(self, folder: bytes, name: bytes, kind: int = 7) -> Reply:
        return self._making(11, opaque(folder) + opaque(name) + u32(kind) + NO_CHANGES)

    def remove(self, folder: bytes, name: bytes) -> Reply:
        return self._with_wcc(12, opaque(folder) + opaque(name))

    def rmdir(self, folder: bytes, name: bytes) -> Reply:
        return self._with_wcc(13, opaque(folder) + opaque(name))

    def rename(self, folder: bytes, name: bytes, new_folder: bytes, new_name: bytes) -> Reply:
        arguments = opaque(folder) + opaque(name) + opaque(new_folder) + opaque(new_name)
        words = self.call(14, arguments)
        return _done(words, Reply(words.u32(), wcc=[_wcc(words), _wcc(words)]))

    def link(self, file: bytes, folder: bytes, name: bytes) -> Reply:
        words = self.call(15, opaque(file) + opaque(folder) + opaque(name))
        return _done(words, Reply(words.u32(), attributes=words.post_op(), wcc=[_wcc(words)]))

    def readdir(self, folder: bytes, cookie: int = 0, count: int = 4096) -> Reply:
        return self._listing(16, opaque(folder) + u64(cookie) + bytes(8) + u32(count), count)

    def readdirplus(
        self, folder: bytes, cookie: int = 0, count: int = 8192, names_count: int = 4096
    ) -> Reply:
        arguments = opaque(folder) + u64(cookie) + bytes(8) + u32(names_count) + u32(count)
        return self._listing(17, arguments, count)

    def names(self, folder: bytes, count: int = 4096) -> list[bytes]:
        """All of them, page by page, without "." and ".."."""
        found: list[Listed] = []
        while True:
            reply = self.readdir(folder, found[-1].cookie if found else 0, count)
            assert reply.status == OK
            found += reply.listed
            if reply.eof:
                return [each.name for each in found if each.name not in (b".", b"..")]

    def fsstat(self, file: bytes) -> Reply:
        return self._figures(18, file, ">6QI")

    def fsinfo(self, file: bytes) -> Reply:
        return self._figures(19, file, ">7IQ3I")

    def pathconf(self, file: bytes) -> Reply:
        return self._figures(20, file, ">6I")

    def commit(self, file: bytes, offset: int = 0, count: int = 0) -> Reply:
        words = self.call(21, opaque(file) + u64(offset) + u32(count))
        reply = Reply(words.u32(), wcc=[_wcc(words)])
        reply.data = words.fixed(8) if reply.status == OK else b""
        return _done(words, reply)

    def _with_wcc(self, procedure: int, arguments: bytes) -> Reply:
        words = self.call(procedure, arguments)
        return _done(words, Reply(words.u32(), wcc=[_wcc(words)]))

    def _making(self, procedure: int, arguments: bytes) -> Reply:
        words = self.call(procedure, arguments)
        reply = Reply(words.u32())
        if reply.status == OK:
            assert words.u32() == 1
            reply.handle, reply.attributes = words.opaque(), words.post_op()
        reply.wcc = [_wcc(words)]
        return _done(words, reply)

    def _listing(self, procedure: int, arguments: bytes, count: int) -> Reply:
        words = self.call(procedure, arguments)
        reply = Reply(words.u32())
        start = words.at
        reply.folder = words.post_op()
        if reply.status == OK:
            words.fixed(8)
            while words.u32():
                fileid, name, cookie = words.u64(), words.opaque(), words.u64()
                listed = Listed(name, fileid, cookie)
                if procedure == 17:
                    listed.attributes = words.post_op()
                    listed.handle = words.opaque() if words.u32() else b""
                reply.listed.append(listed)
            reply.eof = bool(words.u32())
            assert words.at - start <= count, "longer than the client has room for"
        return _done(words, reply)

    def _figures(self, procedure: int, file: bytes, form: str) -> Reply:
        words = self.call(procedure, opaque(file))
        reply = Reply(words.u32(), attributes=words.post_op())
        if reply.status == OK:
            reply.figures = struct.unpack(form, words.fixed(struct.calcsize(form)))
        return _done(words, reply)


def _wcc(words: Reader) -> Wcc:
    before = None
    if words.u32():
        size = words.u64()
        times = [words.u32() * 10**9 + words.u32() for _ in range(2)]
        before = {"size": size, "mtime": times[0], "ctime": times[1]}
    return Wcc(before, words.post_op())


def _done(words: Reader, reply: Reply) -> Reply:
    assert words.done, f"{len(words.data) - words.at} bytes left over or missing"
    return reply
