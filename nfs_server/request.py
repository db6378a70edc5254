"""One NFS call while it is served: its arguments, the files it names, its failure.

A procedure is a function of a `Request` that returns the body of its reply after the status, or
raises VfsError. RFC 1813 gives every procedure a body for failures too; a procedure says with
`on_failure` what it can tell there, before anything can fail (forgetting the booleans there is the
classic bug of NFS servers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nfs_server.errors import VfsError, XdrError
from nfs_server.exports import ExportTable
from nfs_server.handles import HandleCodec
from nfs_server.overlaps import Overlaps
from nfs_server.protocol import HANDLE_BYTES_MAX, NAME_BYTES_MAX, SIZE_MAX, Status
from nfs_server.results import Before, Target, post_op
from nfs_server.vfs import AttributeChanges, ServerTime
from nfs_server.xdr import Decoder

_NS = 1_000_000_000
_DOTS = (b".", b"..")


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all requests of a server share."""

    exports: Callable[[], ExportTable]
    handles: HandleCodec
    verifier: bytes  # of WRITE and COMMIT; constant, because what was acknowledged is durable
    transfer_bytes_max: int  # rtmax and wtmax
    overlaps: Overlaps = field(default_factory=Overlaps)

    def tree_id_of(self, arguments: memoryview) -> int:
        """Which tree the first handle of a call is of; 0 when it is no handle of ours."""
        try:
            named = self.handles.decode(Decoder(arguments).opaque(HANDLE_BYTES_MAX))
        except XdrError:
            return 0
        return 0 if named is None else named.tree_id


@dataclass(slots=True)
class Request:
    shared: Surroundings
    client: str
    uid: int
    gid: int
    arguments: Decoder
    on_failure: Callable[[], bytes] = field(default=bytes)
    _changes: tuple[Before, ...] = ()

    # arguments

    def target(self) -> Target:
        """Decode a handle. Raises VfsError BADHANDLE, STALE, ACCES; XdrError."""
        return self.resolve(self.arguments.opaque(HANDLE_BYTES_MAX))

    def resolve(self, handle: bytes) -> Target:
        exports = self.shared.exports()
        known = exports.resolved.get((handle, self.client))
        if known is not None:
            return known
        named = self.shared.handles.decode(handle)
        if named is None:
            raise VfsError(Status.BADHANDLE)
        export = exports.by_id(named.tree_id)
        if export is None:
            raise VfsError(Status.STALE)
        if not export.admits(self.client):
            raise VfsError(Status.ACCES)
        target = Target(export.tree, named.tree_id, named.number)
        exports.remember(handle, self.client, target)
        return target

    def name(self) -> bytes:
        """Decode a name as it came; `check_name` before it is used for a change."""
        return self.arguments.opaque(SIZE_MAX)

    def changes(self) -> AttributeChanges:
        """Decode sattr3. Raises VfsError INVAL for times and sizes that cannot be."""
        words = self.arguments
        mode = words.u32() & 0o7777 if words.boolean() else None
        uid = words.u32() if words.boolean() else None
        gid = words.u32() if words.boolean() else None
        size_bytes = words.u64() if words.boolean() else None
        changes = AttributeChanges(
            mode=mode,
            uid=uid,
            gid=gid,
            size_bytes=size_bytes,
            accessed=self._time(),
            modified=self._time(),
        )
        if size_bytes is not None and size_bytes > SIZE_MAX:
            raise VfsError(Status.FBIG)
        return changes

    def time_ns(self) -> int:
        seconds, nanoseconds = self.arguments.u32(), self.arguments.u32()
        if nanoseconds >= _NS:
            raise VfsError(Status.INVAL, f"{nanoseconds} nanoseconds")
        return seconds * _NS + nanoseconds

    def _time(self) -> int | ServerTime | None:
        how = self.arguments.u32()
        if how == 0:
            return None
        if how == 1:
            return ServerTime.NOW
        if how == 2:
            return self.time_ns()
        raise VfsError(Status.INVAL, f"time_how {how}")

    # failures

    def tells(self, target: Target) -> Target:
        """From here on a failure shows the attributes of `target`."""
        self.on_failure = lambda: post_op(target)
        return target

    def changing(self, target: Target, failure: Callable[[bytes], bytes] = bytes) -> Before:
        """`target` is about to change. Raises VfsError STALE, ROFS.

        `failure` makes the body of a failure from the wcc of `target`.
        """
        before = Before.of(target, self.shared.overlaps)
        self._changes = (before,)
        self.on_failure = lambda: failure(before.wcc())
        if target.tree.read_only:
            raise VfsError(Status.ROFS)
        return before

    def changing_both(self, first: Target, second: Target) -> tuple[Before, Before]:
        """The same for RENAME, which shows two."""
        one = Before.of(first, self.shared.overlaps)
        self._changes = (one,)
        if first != second:
            self._changes = (one, Before.of(second, self.shared.overlaps))
        two = self._changes[-1]
        self.on_failure = lambda: one.wcc() + two.wcc()
        if first.tree.read_only:
            raise VfsError(Status.ROFS)
        return one, two

    def end(self) -> None:
        """What the call was to change is changed, or will not be. Idempotent."""
        for before in self._changes:
            before.end()

    def handle(self, target: Target) -> bytes:
        return self.shared.handles.encode(target.tree_id, target.number)


def check_name(name: bytes) -> bytes:
    """A name that may be made, removed or renamed. Raises VfsError."""
    if name in _DOTS:
        raise VfsError(Status.INVAL)
    return check_lookup_name(name)


def check_lookup_name(name: bytes) -> bytes:
    if len(name) > NAME_BYTES_MAX:
        raise VfsError(Status.NAMETOOLONG)
    if not name:
        raise VfsError(Status.ACCES)  # RFC 1813 section 3.2
    if b"/" in name or b"\0" in name:
        raise VfsError(Status.INVAL)
    return name
