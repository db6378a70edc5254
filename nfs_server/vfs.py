"""What a served tree must offer: files, folders and symbolic links by number.

A **file number** (fileid3) names a file for good: non-zero, stable over restarts, never used again.
Handles are made from it (`handles`), so a client that was gone for a restart finds its files.

Thread model: methods may be called from several worker threads at once, and each is atomic for the
others. `attributes`, `lookup` and `try_read` are also called on the event loop: they answer from
memory or the page cache and never wait for the storage of a disk. A tree sees to its own locks; a
reader of a disk must not hold up `attributes` of anything.

Durability: what changes names or attributes is durable on return. `write` is durable after the
next `sync` of that file; the server answers a write only then, whatever stability was asked for.

Errors: raise VfsError to choose the client's status; anything else is logged and becomes IO.
Names arrive as bytes, checked: not empty, at most 255 bytes, no NUL, no slash, not "." or "..".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from nfs_server.protocol import FileType

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """fattr3, as far as it is not the server's to say."""

    type: FileType
    mode: int  # permission bits only
    links: int
    uid: int
    gid: int
    size_bytes: int
    used_bytes: int
    number: int
    accessed_ns: int  # since the epoch
    modified_ns: int
    changed_ns: int


class ServerTime(Enum):
    """Stands for "now, by the server's clock" in a change of attributes."""

    NOW = "now"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeChanges:
    """sattr3. None: leave it."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size_bytes: int | None = None
    accessed: int | ServerTime | None = None  # nanoseconds since the epoch
    modified: int | ServerTime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One name in a folder. `cookie` resumes the listing after it, also when names came or went:
    non-zero, ascending in the order of the listing, and never used again in this folder."""

    name: bytes
    number: int
    cookie: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    total_bytes: int
    free_bytes: int
    total_files: int
    free_files: int


class Tree(Protocol):
    @property
    def root(self) -> int:
        """Number of the root folder."""
        ...

    @property
    def read_only(self) -> bool: ...

    def attributes(self, number: int) -> Attributes:
        """Raises VfsError STALE for a file that is gone. On the event loop: never blocks."""
        ...

    def lookup(self, folder: int, name: bytes) -> int:
        """Raises VfsError NOENT, NOTDIR, STALE. On the event loop: never blocks."""
        ...

    def parent(self, folder: int) -> int:
        """The folder that holds this one; the root is its own parent."""
        ...

    def try_read(self, number: int, offset: int, length: int) -> Buffer | None:
        """What `read` would return, or None when that could block. On the event loop."""
        ...

    def read(self, number: int, offset: int, length: int) -> Buffer:
        """Exactly `length` bytes, fewer only where the file ends. A returned view must not change
        afterwards. Raises VfsError ISDIR, INVAL, STALE, IO."""
        ...

    def write(self, number: int, offset: int, data: Buffer) -> None:
        """Write all of `data`, making the file longer where needed; seen by every later call.
        Raises VfsError NOSPC, FBIG, ROFS, STALE, ISDIR."""
        ...

    def sync(self, number: int) -> None:
        """Return once every write to the file that had returned is durable; calls share fsyncs."""
        ...

    def set_attributes(self, number: int, changes: AttributeChanges) -> None: ...

    def create(
        self, folder: int, name: bytes, changes: AttributeChanges, *, exclusive: bytes | None = None
    ) -> int:
        """Make an empty file and return its number.

        `exclusive`: a client's verifier, kept with the file for good; where the name exists with
        the same verifier, that file is returned instead (a repeated request).
        Raises VfsError EXIST for any other file of that name, NOSPC, ROFS, NAMETOOLONG.
        """
        ...

    def make_folder(self, folder: int, name: bytes, changes: AttributeChanges) -> int: ...

    def make_symlink(
        self, folder: int, name: bytes, target: bytes, changes: AttributeChanges
    ) -> int:
        """`target` is text for the client, never followed here. May raise VfsError NOTSUPP."""
        ...

    def read_symlink(self, number: int) -> bytes: ...

    def link(self, number: int, folder: int, name: bytes) -> None:
        """May raise VfsError NOTSUPP."""
        ...

    def remove(self, folder: int, name: bytes) -> None:
        """Remove a file or symbolic link. Raises VfsError ISDIR for a folder."""
        ...

    def remove_folder(self, folder: int, name: bytes) -> None:
        """Raises VfsError NOTDIR, NOTEMPTY."""
        ...

    def rename(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> None:
        """Atomic also over a crash; replaces what has the new name, as RFC 1813 section 3.3.14
        allows: file by file, empty folder by folder."""
        ...

    def list(self, folder: int, after: int, limit: int) -> Sequence[Entry]:
        """At most `limit` entries whose cookie is greater than `after`, without "." and ".."."""
        ...

    def space(self) -> Space: ...
