"""Encoding of what NFS replies are made of: attributes, weak cache consistency data, handles.

Source: RFC 1813 sections 2.5 and 2.6. Thread model: pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from struct import Struct

from nfs_server import xdr
from nfs_server.errors import VfsError
from nfs_server.overlaps import Overlaps, Ticket
from nfs_server.protocol import Status
from nfs_server.vfs import Attributes, Tree

# type mode nlink uid gid | size used | rdev | fsid fileid | atime mtime ctime
_FATTR = Struct(">IIIIIQQIIQQIIIIII")
assert _FATTR.size == 84
_PRESENT_FATTR = Struct(">I" + _FATTR.format[1:])
_PRE_OP = Struct(">IQIIII")
_NS = 1_000_000_000
ABSENT_WCC = xdr.FALSE + xdr.FALSE

_STATUS = {status: xdr.U32.pack(status) for status in Status}
OK = _STATUS[Status.OK]


def status_word(status: Status) -> bytes:
    return _STATUS[status]


def fattr(attributes: Attributes, fsid: int) -> bytes:
    return _FATTR.pack(*_fields(attributes, fsid))


_packed: dict[tuple[int, int], tuple[Attributes, bytes]] = {}  # by fsid and file number
_PACKED_MAX = 4096


def present_attributes(attributes: Attributes, fsid: int) -> bytes:
    """post_op_attr with attributes. Quick when a tree gives the same object as before."""
    key = (fsid, attributes.number)
    known = _packed.get(key)
    if known is not None and known[0] is attributes:
        return known[1]
    packed = _PRESENT_FATTR.pack(1, *_fields(attributes, fsid))
    if len(_packed) >= _PACKED_MAX:
        _packed.clear()
    _packed[key] = (attributes, packed)
    return packed


def _fields(attributes: Attributes, fsid: int) -> tuple[int, ...]:
    return (
        attributes.type,
        attributes.mode,
        attributes.links,
        attributes.uid,
        attributes.gid,
        attributes.size_bytes,
        attributes.used_bytes,
        0,
        0,
        fsid,
        attributes.number,
        *divmod(attributes.accessed_ns, _NS),
        *divmod(attributes.modified_ns, _NS),
        *divmod(attributes.changed_ns, _NS),
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A file that a request names, with the tree it lives in."""

    tree: Tree
    tree_id: int
    number: int

    def attributes(self) -> Attributes:
        return self.tree.attributes(self.number)

    def sibling(self, number: int) -> Target:
        return Target(self.tree, self.tree_id, number)


def post_op(target: Target | None) -> bytes:
    """post_op_attr; without attributes when the file is gone."""
    if target is None:
        return xdr.FALSE
    try:
        return present_attributes(target.attributes(), target.tree_id)
    except VfsError:
        return xdr.FALSE


@dataclass(slots=True)
class Before:
    """A change that is under way, with what wcc_data compares with."""

    target: Target
    attributes: Attributes
    _ticket: Ticket
    _wcc: bytes = field(default=b"")

    @classmethod
    def of(cls, target: Target, overlaps: Overlaps) -> Before:
        """Raises VfsError STALE. `end` it, whatever happens."""
        ticket = overlaps.begin((target.tree_id, target.number))
        try:
            return cls(target, target.attributes(), ticket)
        except BaseException:
            ticket.end()
            raise

    def wcc(self) -> bytes:
        """wcc_data of the change, which ends here if it has not ended."""
        self.end()
        return self._wcc

    def end(self) -> None:
        """The change is done, or has failed. Idempotent."""
        if self._wcc:
            return
        after = post_op(self.target)
        if self._ticket.end():
            self._wcc = pre_op(self.attributes) + after
        else:
            self._wcc = xdr.FALSE + after


def pre_op(attributes: Attributes) -> bytes:
    """pre_op_attr with attributes."""
    times = (*divmod(attributes.modified_ns, _NS), *divmod(attributes.changed_ns, _NS))
    return _PRE_OP.pack(1, attributes.size_bytes, *times)
