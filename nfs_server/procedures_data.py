"""READ, WRITE, COMMIT.

Every write is answered as FILE_SYNC, whatever was asked for, so a client that forgets its unstable
writes or never compares verifiers (libnfs, and so QEMU) loses nothing when the server dies, and a
COMMIT has nothing to wait for. That costs a sync per write, so a write is in two steps: a worker
performs a batch of writes, syncs each file once, and answers them all.
Source: RFC 1813 sections 3.3.6, 3.3.7, 3.3.21.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from nfs_server import xdr
from nfs_server.errors import VfsError, XdrError
from nfs_server.handles import HANDLE_BYTES
from nfs_server.protocol import SIZE_MAX, FileType, StableHow, Status
from nfs_server.request import Request
from nfs_server.results import Before, Target, post_op, pre_op, present_attributes
from nfs_server.vfs import Attributes, Buffer

_PLAIN_READ = Struct(f">I{HANDLE_BYTES}sQI")  # with a handle as long as ours
_READ_TAIL = Struct(">III")  # count, eof, length of the data


class Range(NamedTuple):
    """What a READ asks for, clipped to the file."""

    target: Target
    attributes: Attributes
    offset: int
    length: int

    def reply(self, data: Buffer) -> list[Buffer]:
        """eof also when the request went past the end: ESXi fails to create VMs without it."""
        attributes, length = self.attributes, len(data)
        eof = self.offset + length >= attributes.size_bytes
        head = present_attributes(attributes, self.target.tree_id)
        tail = _READ_TAIL.pack(length, eof, length)
        if length % 4:
            return [head + tail, data, xdr.padding(length)]
        return [head + tail, data]


def _range(request: Request) -> Range:
    """Decode a READ. Raises VfsError."""
    plain = request.arguments.whole(_PLAIN_READ)
    if plain is not None and plain[0] == HANDLE_BYTES:
        _, handle, offset, count = plain
        target = request.tells(request.resolve(handle))
    else:
        target = request.tells(request.target())
        offset, count = request.arguments.u64(), request.arguments.u32()
        request.arguments.finish()
    return clipped(target, offset, count, request.shared.transfer_bytes_max)


def clipped(target: Target, offset: int, count: int, transfer_bytes_max: int) -> Range:
    """Raises VfsError: STALE, or not a regular file."""
    attributes = target.attributes()
    if attributes.type is not FileType.REGULAR:
        folder = attributes.type is FileType.DIRECTORY
        raise VfsError(Status.ISDIR if folder else Status.INVAL)
    length = max(0, min(count, transfer_bytes_max, attributes.size_bytes - offset))
    return Range(target, attributes, offset, length)


def plain_handle(arguments: memoryview) -> bytes | None:
    """The handle of a READ whose arguments are laid out as ours make them."""
    if len(arguments) != _PLAIN_READ.size:
        return None
    length, handle, _, _ = _PLAIN_READ.unpack(arguments)
    return handle if length == HANDLE_BYTES else None


def try_read(request: Request) -> list[Buffer] | Range:
    """Answer a READ without blocking, or return what `read_range` is to read."""
    wanted = _range(request)
    if not wanted.length:
        return wanted.reply(b"")
    data = wanted.target.tree.try_read(wanted.target.number, wanted.offset, wanted.length)
    return wanted if data is None else wanted.reply(data)


def read_range(wanted: Range) -> list[Buffer]:
    return wanted.reply(wanted.target.tree.read(wanted.target.number, wanted.offset, wanted.length))


def read(request: Request) -> list[Buffer]:
    wanted = try_read(request)
    return read_range(wanted) if isinstance(wanted, Range) else wanted


@dataclass(frozen=True, slots=True)
class Written:
    """A WRITE that is done and not yet durable."""

    target: Target
    before: Before
    length: int
    verifier: bytes

    def reply(self) -> list[Buffer]:
        """Once it is durable."""
        tail = xdr.U32.pack(self.length) + xdr.U32.pack(StableHow.FILE_SYNC) + self.verifier
        return [self.before.wcc() + tail]


def write(request: Request) -> Written:
    target = request.target()
    before = request.changing(target)
    offset, count, stable = (
        request.arguments.u64(),
        request.arguments.u32(),
        request.arguments.u32(),
    )
    data = request.arguments.opaque_view(request.shared.transfer_bytes_max)
    request.arguments.finish()
    if stable > StableHow.FILE_SYNC:
        raise XdrError(f"stable_how {stable}")
    if count != len(data):
        raise VfsError(Status.INVAL, f"WRITE of {count} bytes brings {len(data)}")
    if before.attributes.type is not FileType.REGULAR:
        folder = before.attributes.type is FileType.DIRECTORY
        raise VfsError(Status.ISDIR if folder else Status.INVAL)
    if offset + count > SIZE_MAX:
        raise VfsError(Status.FBIG)
    if count:
        target.tree.write(target.number, offset, data)
    before.end()
    return Written(target, before, count, request.shared.verifier)


def commit(request: Request) -> list[Buffer]:
    """There is nothing left to do: whatever was acknowledged is durable already.

    It changes no attributes, so those of one moment stand for before and after.
    """
    target = request.target()
    request.on_failure = lambda: xdr.FALSE + post_op(target)
    request.arguments.u64()
    request.arguments.u32()
    request.arguments.finish()
    attributes = target.attributes()
    after = present_attributes(attributes, target.tree_id)
    return [pre_op(attributes) + after + request.shared.verifier]
