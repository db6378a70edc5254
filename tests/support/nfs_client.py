"""A small NFSv3 client of its own for tests: one TCP connection, one call at a time.

It shares nothing with `nfs_server`; what a server answers is decoded by the caller with `Reader`.
"""

from __future__ import annotations

import itertools
import socket
import struct

NFS, MOUNT, PORTMAP = 100003, 100005, 100000


class RpcRefused(Exception):
    """The reply is a denial or an accept status other than success."""

    def __init__(self, kind: str, number: int) -> None:
        super().__init__(f"{kind} {number}")
        self.kind = kind
        self.number = number


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def u32(self) -> int:
        self.at += 4
        return int.from_bytes(self.data[self.at - 4 : self.at], "big")

    def u64(self) -> int:
        self.at += 8
        return int.from_bytes(self.data[self.at - 8 : self.at], "big")

    def fixed(self, length: int) -> bytes:
        start = self.at
        self.at += length + -length % 4
        return self.data[start : start + length]

    def opaque(self) -> bytes:
        return self.fixed(self.u32())

    def attributes(self) -> dict[str, int]:
        """fattr3."""
        names = ("type", "mode", "nlink", "uid", "gid", "size", "used")
        values = struct.unpack(">IIIIIQQ", self.fixed(36))
        self.fixed(8)
        fsid, fileid = self.u64(), self.u64()
        times = {name: self.u32() * 10**9 + self.u32() for name in ("atime", "mtime", "ctime")}
        return dict(zip(names, values, strict=True)) | {"fsid": fsid, "fileid": fileid} | times

    def post_op(self) -> dict[str, int] | None:
        return self.attributes() if self.u32() else None

    def wcc(self) -> dict[str, int] | None:
        if self.u32():
            self.fixed(24)
        return self.post_op()

    @property
    def done(self) -> bool:
        return self.at == len(self.data)


def u32(value: int) -> bytes:
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    return struct.pack(">Q", value)


def opaque(data: bytes) -> bytes:
    return u32(len(data)) + data + bytes(-len(data) % 4)


NO_CHANGES = u32(0) * 6


def size_change(size: int) -> bytes:
    return u32(0) * 3 + u32(1) + u64(size) + u32(0) * 2


class NfsClient:
    def __init__(self, port: int, host: str = "127.0.0.1", *, source: str = "127.0.0.1") -> None:
        self.socket = socket.create_connection((host, port), 20, source_address=(source, 0))
        self._xids = itertools.count(int.from_bytes(b"test", "big"))

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> NfsClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(
        self,
        program: int,
        version: int,
        procedure: int,
        arguments: bytes,
        *,
        xid: int | None = None,
    ) -> int:
        xid = next(self._xids) if xid is None else xid
        credential = u32(1) + opaque(u32(0) + opaque(b"test") + u32(0) + u32(0) + u32(0))
        head = u32(xid) + u32(0) + u32(2) + u32(program) + u32(version) + u32(procedure)
        message = head + credential + u32(0) + u32(0) + arguments
        self.socket.sendall(u32(1 << 31 | len(message)) + message)
        return xid

    def receive(self) -> tuple[int, Reader]:
        """The next reply. Raises RpcRefused, ConnectionError."""
        mark = int.from_bytes(self._exactly(4), "big")
        assert mark & 1 << 31
        reply = Reader(self._exactly(mark & ~(1 << 31)))
        xid = reply.u32()
        assert reply.u32() == 1
        if reply.u32():
            raise RpcRefused("denied", reply.u32())
        assert (reply.u32(), reply.u32()) == (0, 0)
        status = reply.u32()
        if status:
            raise RpcRefused("accepted", status)
        return xid, reply

    def call(self, procedure: int, arguments: bytes = b"", *, program: int = NFS) -> Reader:
        version = 2 if program == PORTMAP else 3
        xid = self.send(program, version, procedure, arguments)
        answered, reply = self.receive()
        assert answered == xid
        return reply

    def mount(self, path: str) -> bytes:
        reply = self.call(1, opaque(path.encode()), program=MOUNT)
        status = reply.u32()
        assert status == 0, f"MNT {path}: {status}"
        return reply.opaque()

    def lookup(self, folder: bytes, name: bytes) -> bytes | int:
        """The handle, or the status."""
        reply = self.call(3, opaque(folder) + opaque(name))
        status = reply.u32()
        return status or reply.opaque()

    def create(self, folder: bytes, name: bytes) -> bytes:
        reply = self.call(8, opaque(folder) + opaque(name) + u32(1) + NO_CHANGES)
        assert reply.u32() == 0
        assert reply.u32() == 1
        return reply.opaque()

    def write(self, file: bytes, offset: int, data: bytes, stable: int = 0) -> int:
        """The status; asserts that an OK answer promises durability."""
        words = opaque(file) + u64(offset) + u32(len(data)) + u32(stable) + opaque(data)
        reply = self.call(7, words)
        status = reply.u32()
        reply.wcc()
        if status == 0:
            assert (reply.u32(), reply.u32()) == (len(data), 2)
        return status

    def read(self, file: bytes, offset: int, count: int) -> tuple[bytes, bool]:
        reply = self.call(6, opaque(file) + u64(offset) + u32(count))
        assert reply.u32() == 0
        reply.post_op()
        length, eof = reply.u32(), bool(reply.u32())
        data = reply.opaque()
        assert len(data) == length
        assert reply.done
        return data, eof

    def attributes(self, file: bytes) -> dict[str, int] | int:
        reply = self.call(1, opaque(file))
        return reply.u32() or reply.attributes()

    def _exactly(self, count: int) -> bytes:
        received = b""
        while len(received) < count:
            piece = self.socket.recv(count - len(received))
            if not piece:
                raise ConnectionError("the server hung up")
            received += piece
        return received
