"""Names and attributes of a session's folder: all of them in memory, every change durable first.

A hypervisor makes a few dozen files beside the disks (logs, locks, swap, snapshots), so a dict
serves them without blocking and LMDB is the log: a change is one transaction, synced before it
shows. Numbers and cookies are never used again.

`names.lmdb`, version 1: `meta` (version, next number, next cookie), `nodes` (number -> JSON),
`entries` (folder number, name -> number, cookie; big-endian, so in the order of folders).

Thread model: one thread changes at a time, readers take no lock: a change replaces what it changes.
Crash guarantee: after a kill or a power cut the table is as after some whole change, none lost that
had returned.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from struct import Struct

import lmdb

from appliance.base.atomic import fsync_directory
from appliance.base.errors import StorageError
from nfs_server.errors import VfsError
from nfs_server.protocol import Status
from nfs_server.vfs import AttributeChanges, ServerTime

VERSION = 1
ROOT = 1
_MAP_BYTES = 256 << 20  # address space; the file is as large as what is in it
_KEY = Struct(">Q")
_PLACE = Struct(">QQ")
_NEXT = Struct(">QQ")
_LINKS_MAX = 1024
NODES_MAX = 1 << 17
_MODES = {"folder": 0o755, "symlink": 0o777}


class Kind(StrEnum):
    FOLDER = "folder"
    SCRATCH = "scratch"
    DISK = "disk"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A file, folder or symbolic link, whatever its names are."""

    number: int
    kind: Kind
    mode: int
    uid: int
    gid: int
    links: int
    accessed_ns: int
    modified_ns: int
    changed_ns: int
    parent: int = 0  # of a folder
    disk: int | None = None  # number of the disk that a DISK shows
    verifier_hex: str = ""  # of an exclusive create
    link_hex: str = ""  # what a SYMLINK says


@dataclass(frozen=True, slots=True)
class Place:
    """What a name leads to, and its cookie in listings."""

    number: int
    cookie: int


class _Change:
    """One transaction in the making."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node | None] = {}
        self.entries: dict[tuple[int, bytes], Place | None] = {}

    def loses_only(self, folder: int) -> bool:
        """Whether names only go from this folder."""
        return all(place is None for (each, _), place in self.entries.items() if each == folder)


class NameTable:
    def __init__(self, folder: Path, now_ns: Callable[[], int]) -> None:
        """Open the table in `folder`, or make one with an empty root.

        Raises: StorageError.
        """
        self._now_ns = now_ns
        self._lock = threading.RLock()
        try:
            self._env = lmdb.open(str(folder), max_dbs=3, map_size=_MAP_BYTES, mode=0o600)
            self._meta = self._env.open_db(b"meta")
            self._node_rows = self._env.open_db(b"nodes")
            self._entry_rows = self._env.open_db(b"entries")
            for changed in (folder, folder.parent):
                fsync_directory(changed)  # LMDB syncs what is in its files, not that there are any
        except (lmdb.Error, OSError) as error:
            raise StorageError(f"cannot open {folder}: {error}") from error
        self.nodes: dict[int, Node] = {}
        self.entries: dict[int, dict[bytes, Place]] = {}  # each in the order of its cookies
        self._next_number, self._next_cookie = ROOT, 1
        self._load(folder)
        if ROOT not in self.nodes:
            self._make_root()

    def close(self) -> None:
        self._env.close()

    # looking

    def node(self, number: int) -> Node:
        """Raises VfsError STALE."""
        node = self.nodes.get(number)
        if node is None:
            raise VfsError(Status.STALE)
        return node

    def folder(self, number: int) -> dict[bytes, Place]:
        """Raises VfsError STALE, NOTDIR."""
        entries = self.entries.get(number)
        if entries is None:
            raise VfsError(
                Status.NOTDIR if self.node(number).kind is not Kind.FOLDER else Status.STALE
            )
        return entries

    def find(self, folder: int, name: bytes) -> Node:
        """Raises VfsError NOENT, NOTDIR, STALE."""
        place = self.folder(folder).get(name)
        node = None if place is None else self.nodes.get(place.number)
        if node is None:
            raise VfsError(Status.NOENT)
        return node

    # changing; every method is durable on return

    def add(
        self,
        folder: int,
        name: bytes,
        kind: Kind,
        changes: AttributeChanges,
        *,
        disk: int | None = None,
        exclusive: bytes = b"",
        link: bytes = b"",
    ) -> Node:
        """Make a node under a new name. Raises VfsError EXIST, NOTDIR, STALE, NOSPC."""
        with self._lock, self._changing() as change:
            if name in self.folder(folder):
                raise VfsError(Status.EXIST)
            if len(self.nodes) >= NODES_MAX:
                raise VfsError(Status.NOSPC, "too many files")
            now_ns = self._now_ns()
            node = Node(
                number=self._number(),
                kind=kind,
                mode=_MODES.get(kind, 0o644),
                uid=0,
                gid=0,
                links=2 if kind is Kind.FOLDER else 1,
                accessed_ns=now_ns,
                modified_ns=now_ns,
                changed_ns=now_ns,
                parent=folder if kind is Kind.FOLDER else 0,
                disk=disk,
                verifier_hex=exclusive.hex(),
                link_hex=link.hex(),
            )
            change.nodes[node.number] = node = _changed(node, changes, now_ns)
            change.entries[folder, name] = Place(node.number, self._cookie())
            self._touch(change, folder, links=kind is Kind.FOLDER)
            return node

    def set_attributes(
        self, number: int, changes: AttributeChanges, *, later_than_ns: int = 0
    ) -> None:
        """Everything but the size, which belongs to the content.

        The file changes later than `later_than_ns`, as it did at all its changes before.
        """
        with self._lock, self._changing() as change:
            now_ns = self._later(later_than_ns)
            change.nodes[number] = _changed(self.node(number), changes, now_ns)

    def link(self, number: int, folder: int, name: bytes) -> None:
        with self._lock, self._changing() as change:
            node = self.node(number)
            if node.kind is Kind.FOLDER:
                raise VfsError(Status.ISDIR)
            if name in self.folder(folder):
                raise VfsError(Status.EXIST)
            if node.links >= _LINKS_MAX:
                raise VfsError(Status.MLINK)
            now_ns = self._later(node.changed_ns)
            change.nodes[number] = replace(node, links=node.links + 1, changed_ns=now_ns)
            change.entries[folder, name] = Place(number, self._cookie())
            self._touch(change, folder)

    def remove(self, folder: int, name: bytes, *, is_folder: bool) -> Node:
        """Take the name away; return the node, which is gone when it had no other name.

        Raises VfsError NOENT, ISDIR, NOTDIR, NOTEMPTY.
        """
        with self._lock, self._changing() as change:
            node = self.find(folder, name)
            if is_folder and node.kind is not Kind.FOLDER:
                raise VfsError(Status.NOTDIR)
            if not is_folder and node.kind is Kind.FOLDER:
                raise VfsError(Status.ISDIR)
            self._unname(change, folder, name, node)
            self._touch(change, folder, links=-1 if is_folder else 0)
            return node

    def rename(self, folder: int, name: bytes, new_folder: int, new_name: bytes) -> Node | None:
        """Move a name; return the node that it replaced, if there was one.

        Raises VfsError NOENT, NOTDIR, ISDIR, NOTEMPTY, INVAL for a folder moved into itself.
        """
        with self._lock, self._changing() as change:
            node = self.find(folder, name)
            place = self.folder(new_folder).get(new_name)
            replaced = None if place is None else self.node(place.number)
            if replaced is not None and replaced.number == node.number:
                return None
            if node.kind is Kind.FOLDER and self._is_inside(new_folder, node.number):
                raise VfsError(Status.INVAL)
            moves_folder = node.kind is Kind.FOLDER
            if replaced is not None:
                if moves_folder and replaced.kind is not Kind.FOLDER:
                    raise VfsError(Status.NOTDIR)
                if replaced.kind is Kind.FOLDER and not moves_folder:
                    raise VfsError(Status.ISDIR)
                self._unname(change, new_folder, new_name, replaced)
            change.entries[folder, name] = None
            change.entries[new_folder, new_name] = Place(node.number, self._cookie())
            changed_ns = self._later(node.changed_ns)
            parent = new_folder if moves_folder else 0
            change.nodes[node.number] = replace(node, changed_ns=changed_ns, parent=parent)
            across = moves_folder and folder != new_folder
            gone = moves_folder and replaced is not None
            self._touch(change, folder, links=-1 if across else 0)
            self._touch(change, new_folder, links=across - gone)
            return replaced

    # inside

    def _is_inside(self, folder: int, outer: int) -> bool:
        while folder != outer:
            if folder == ROOT:
                return False
            folder = self.node(folder).parent
        return True

    def _unname(self, change: _Change, folder: int, name: bytes, node: Node) -> None:
        if node.kind is Kind.FOLDER and self.entries[node.number]:
            raise VfsError(Status.NOTEMPTY)
        change.entries[folder, name] = None
        if node.kind is Kind.FOLDER or node.links == 1:
            change.nodes[node.number] = None
        else:
            changed_ns = self._later(node.changed_ns)
            change.nodes[node.number] = replace(node, links=node.links - 1, changed_ns=changed_ns)

    def _touch(self, change: _Change, folder: int, *, links: int = 0) -> None:
        """A folder's times and links follow from what happens in it."""
        node = change.nodes.get(folder) or self.node(folder)
        now_ns = self._later(node.changed_ns)
        change.nodes[folder] = replace(
            node, links=node.links + links, modified_ns=now_ns, changed_ns=now_ns
        )

    def _later(self, than_ns: int) -> int:
        """Now, but later than `than_ns`: clients look for times that differ."""
        return max(self._now_ns(), than_ns + 1)

    def _number(self) -> int:
        self._next_number += 1
        return self._next_number

    def _cookie(self) -> int:
        self._next_cookie += 1
        return self._next_cookie

    @contextmanager
    def _changing(self) -> Iterator[_Change]:
        """Write what the block has put together, durably, and show it. Raises VfsError NOSPC."""
        change = _Change()
        yield change
        try:
            with self._env.begin(write=True) as rows:
                self._write(rows, change)
        except lmdb.MapFullError as error:
            raise VfsError(Status.NOSPC, str(error)) from error
        except lmdb.Error as error:
            full = "No space" in str(error)
            raise VfsError(Status.NOSPC if full else Status.IO, str(error)) from error
        self._show(change)

    def _write(self, rows: lmdb.Transaction, change: _Change) -> None:
        for number, node in change.nodes.items():
            if node is None:
                rows.delete(_KEY.pack(number), db=self._node_rows)
            else:
                text = json.dumps(asdict(node)).encode()
                rows.put(_KEY.pack(number), text, db=self._node_rows)
        for (folder, name), place in change.entries.items():
            key = _KEY.pack(folder) + name
            if place is None:
                rows.delete(key, db=self._entry_rows)
            else:
                rows.put(key, _PLACE.pack(place.number, place.cookie), db=self._entry_rows)
        rows.put(b"version", _KEY.pack(VERSION), db=self._meta)
        rows.put(b"next", _NEXT.pack(self._next_number, self._next_cookie), db=self._meta)

    def _show(self, change: _Change) -> None:
        """In an order that suits readers: no name leads nowhere, none is missing on its way."""
        for number, node in change.nodes.items():
            if node is not None:
                self.nodes[number] = node
                if node.kind is Kind.FOLDER:
                    self.entries.setdefault(number, {})
        for folder in sorted({folder for folder, _ in change.entries}, key=change.loses_only):
            shown = dict(self.entries[folder])
            for (changed, name), place in change.entries.items():
                if changed == folder:
                    shown.pop(name, None)
                    if place is not None:
                        shown[name] = place
            self.entries[folder] = shown
        for number, node in change.nodes.items():
            if node is None:
                self.nodes.pop(number, None)
                self.entries.pop(number, None)

    def _make_root(self) -> None:
        now_ns = self._now_ns()
        with self._changing() as change:
            change.nodes[ROOT] = Node(
                number=ROOT,
                kind=Kind.FOLDER,
                mode=0o755,
                uid=0,
                gid=0,
                links=2,
                accessed_ns=now_ns,
                modified_ns=now_ns,
                changed_ns=now_ns,
                parent=ROOT,
            )

    def _load(self, folder: Path) -> None:
        try:
            with self._env.begin() as rows:
                version = rows.get(b"version", db=self._meta)
                if version is None:
                    return
                if _KEY.unpack(version)[0] > VERSION:
                    raise StorageError(f"{folder} was written by a newer Holdfast")
                following = rows.get(b"next", db=self._meta) or b""
                if len(following) != _NEXT.size:
                    raise StorageError(f"{folder} is damaged: its counters are missing")
                self._next_number, self._next_cookie = _NEXT.unpack(following)
                for _, text in rows.cursor(db=self._node_rows):
                    fields = json.loads(text)
                    node = Node(**{**fields, "kind": Kind(fields["kind"])})
                    self.nodes[node.number] = node
                    if node.kind is Kind.FOLDER:
                        self.entries[node.number] = {}
                for key, row in rows.cursor(db=self._entry_rows):
                    number, name = _KEY.unpack_from(key)[0], bytes(key[_KEY.size :])
                    self.entries[number][name] = Place(*_PLACE.unpack(row))
            for number, entries in self.entries.items():
                by_cookie = sorted(entries.items(), key=lambda entry: entry[1].cookie)
                self.entries[number] = dict(by_cookie)
        except (lmdb.Error, ValueError, KeyError, TypeError) as error:
            raise StorageError(f"{folder} is damaged: {error}") from error


def _changed(node: Node, changes: AttributeChanges, now_ns: int) -> Node:
    def time(wanted: int | ServerTime | None, old_ns: int) -> int:
        return old_ns if wanted is None else now_ns if wanted is ServerTime.NOW else wanted

    return replace(
        node,
        mode=node.mode if changes.mode is None else changes.mode,
        uid=node.uid if changes.uid is None else changes.uid,
        gid=node.gid if changes.gid is None else changes.gid,
        accessed_ns=time(changes.accessed, node.accessed_ns),
        modified_ns=time(changes.modified, node.modified_ns),
        changed_ns=max(now_ns, node.changed_ns + 1),
    )
