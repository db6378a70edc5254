"""`/folder`: files of a datastore over HTTP, on vCenter and on every host.

| method | needs | refuses |
|---|---|---|
| GET, HEAD of a folder | Datastore.Browse | |
| GET of a file | Datastore.Browse, Datastore.FileManagement | what is held exclusively: 500 |
| PUT, DELETE | the same | what anybody holds: 500 |

A GET holds a shared lock until its last byte is read, so nobody powers on or consolidates below
it. A PUT becomes visible whole: it goes to a temporary file that takes the name at the end.
Source: design notes on vSphere, section 4b. Thread model: any thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote, urlencode

from lab.data_plane.access import Gate, Privileges
from lab.data_plane.exchange import Exchange
from lab.data_plane.faulty_body import BodySender, StreamEndedError, refuse
from lab.data_plane.ranges import ByteRange, RangeNotSatisfiableError, parse_range
from lab.esx.datastore import LabDatastore
from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import (
    FileLockedError,
    FileMissingError,
    FileThereError,
    HostError,
    InvalidPathError,
    NoSpaceError,
)
from lab.esx.file_locks import FileLocks, LockMode
from lab.esx.files import FileEntry
from lab.faults import FaultName, FaultSwitches

PREFIX = "/folder"
HOST_DATACENTER = "ha-datacenter"
_PIECE_BYTES = 1 << 20
_STATUS = {
    FileMissingError: HTTPStatus.NOT_FOUND,
    InvalidPathError: HTTPStatus.NOT_FOUND,
    FileLockedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    FileThereError: HTTPStatus.CONFLICT,
    NoSpaceError: HTTPStatus.INSUFFICIENT_STORAGE,
}
_numbers = itertools.count(1)


class NotAllowedError(Exception):
    """The user lacks the privilege: 403."""


class DatastoreTree(Protocol):
    """What of the inventory `/folder` shows. Thread-safe."""

    def datacenters(self) -> Sequence[str]:
        """Inventory paths of the datacenters, like `Folder/DC`."""
        ...

    def datastores(self, datacenter: str) -> Sequence[LabDatastore]:
        """Those of the datacenter that are accessible here; none of an unknown datacenter."""
        ...

    def entity(self, datacenter: str, datastore: str) -> str:
        """The moref that privileges on the datastore are asked of."""
        ...


class FolderHandler:
    """Answers `/folder/…?dcPath=…&dsName=…` at one place."""

    def __init__(
        self,
        tree: DatastoreTree,
        gate: Gate,
        privileges: Privileges,
        locks: FileLocks,
        switches: FaultSwitches,
    ) -> None:
        self._tree = tree
        self._gate = gate
        self._privileges = privileges
        self._locks = locks
        self._switches = switches

    def __call__(self, exchange: Exchange) -> None:
        if refuse(exchange, self._switches):
            return
        user = self._gate.user_of(exchange)
        if user is None:
            return
        try:
            self._answer(exchange, user)
        except NotAllowedError as error:
            exchange.answer_error(HTTPStatus.FORBIDDEN, f"privilege {error} is missing")
        except HostError as error:
            status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
            if exchange.answered:
                exchange.close_after()  # the body stays too short
            else:
                exchange.answer_error(status, escape(str(error)))

    def _answer(self, exchange: Exchange, user: str) -> None:
        datacenter = self._datacenter(exchange)
        name = exchange.query.get("dsName")
        relative = exchange.path.removeprefix(PREFIX).strip("/")
        if datacenter is None or name is None:
            self._list_tree(exchange, datacenter, relative)
            return
        datastore = next((d for d in self._tree.datastores(datacenter) if d.name == name), None)
        if datastore is None:
            raise FileMissingError(f"no datastore {name} in {datacenter}")
        entity = self._tree.entity(datacenter, name)
        self._require(user, "Datastore.Browse", entity)
        path = datastore.path(relative)
        entry = datastore.files.stat(path.path)
        if exchange.method in ("GET", "HEAD") and entry is not None and entry.is_folder:
            self._list_folder(exchange, datastore, path)
        elif exchange.method == "HEAD" and entry is not None:
            exchange.begin(HTTPStatus.OK, _file_headers(entry), length=entry.size_bytes)
        else:
            self._require(user, "Datastore.FileManagement", entity)
            self._access_file(exchange, datastore, path)

    def _access_file(
        self, exchange: Exchange, datastore: LabDatastore, path: DatastorePath
    ) -> None:
        if exchange.method == "PUT":
            self._write(exchange, datastore, path)
            return
        entry = datastore.files.stat(path.path)
        if entry is None:
            raise FileMissingError(f"{path} was not found")
        if exchange.method == "DELETE":
            self._delete(exchange, datastore, path)
        elif exchange.method == "GET":
            self._read(exchange, datastore, path, entry)
        else:
            exchange.answer_error(HTTPStatus.METHOD_NOT_ALLOWED, "not for datastore files")

    def _datacenter(self, exchange: Exchange) -> str | None:
        """A host has one datacenter that need not be named; vCenter's must be."""
        named = exchange.query.get("dcPath")
        if exchange.place.is_vcenter or named is not None:
            return named
        return HOST_DATACENTER

    def _require(self, user: str, privilege: str, entity: str) -> None:
        if not self._privileges.allows(user, privilege, entity):
            raise NotAllowedError(privilege)

    # reading

    def _list_tree(self, exchange: Exchange, datacenter: str | None, relative: str) -> None:
        """Above the datastores: the datacenters, or the datastores of one."""
        if exchange.method not in ("GET", "HEAD") or relative:
            raise FileMissingError("dcPath and dsName must be given")
        if datacenter is None:
            links = [(dc, {"dcPath": dc}) for dc in self._tree.datacenters()]
        else:
            links = [
                (d.name, {"dcPath": datacenter, "dsName": d.name})
                for d in self._tree.datastores(datacenter)
            ]
            if not links and datacenter not in self._tree.datacenters():
                raise FileMissingError("no such datacenter")
        rows = [(text, f"{PREFIX}?{urlencode(query)}") for text, query in links]
        exchange.answer(HTTPStatus.OK, _page("Index", rows), "text/html; charset=utf-8")

    def _read(
        self,
        exchange: Exchange,
        datastore: LabDatastore,
        path: DatastorePath,
        entry: FileEntry,
    ) -> None:
        fields = {"host": exchange.place.name, "path": exchange.path}
        if self._switches.take(FaultName.FILE_LOCKED, **fields):
            raise FileLockedError(f"{path} is locked")
        if path.name.endswith(".vmdk") and self._switches.take(
            FaultName.DESCRIPTOR_STREAMS_DISK, **fields
        ):
            path = path.sibling(f"{path.name.removesuffix('.vmdk')}-flat.vmdk")
            entry = datastore.files.stat(path.path) or entry
        try:
            part = parse_range(exchange.header("Range"), entry.size_bytes)
        except RangeNotSatisfiableError:
            size = ("Content-Range", f"bytes */{entry.size_bytes}")
            exchange.answer_error(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", size)
            return
        self._send_file(exchange, datastore, path, entry, part)

    def _send_file(
        self,
        exchange: Exchange,
        datastore: LabDatastore,
        path: DatastorePath,
        entry: FileEntry,
        part: ByteRange | None,
    ) -> None:
        holder = f"http {next(_numbers)}"
        self._locks.acquire(holder, [(path, LockMode.SHARED)])
        try:
            part = self._begin(exchange, entry, part)
            sender = BodySender(exchange, self._switches)
            offset = part.start
            while offset < part.stop:
                count = min(_PIECE_BYTES, part.stop - offset)
                data = datastore.files.read_at(path.path, offset, count)
                if len(data) != count:
                    raise FileMissingError(f"{path} became shorter")
                offset += count
                if offset == part.stop:  # a client that has everything finds the file free
                    self._locks.release(holder)
                sender.send(data)
            sender.finish()
        except StreamEndedError:
            pass
        finally:
            self._locks.release(holder)

    def _begin(self, exchange: Exchange, entry: FileEntry, part: ByteRange | None) -> ByteRange:
        """Send the head; return what the body will be."""
        fields = {"host": exchange.place.name, "path": exchange.path}
        headers = _file_headers(entry)
        if part is not None and self._switches.take(FaultName.RANGE_IGNORED, **fields):
            part = None
        if part is None:
            exchange.begin(HTTPStatus.OK, headers, length=entry.size_bytes)
            return ByteRange(0, entry.size_bytes, entry.size_bytes)
        shown = part
        if self._switches.take(FaultName.WRONG_RANGE, **fields):
            shown = ByteRange(part.start + 512, part.stop + 512, part.size)
        headers.append(("Content-Range", shown.content_range))
        exchange.begin(HTTPStatus.PARTIAL_CONTENT, headers, length=part.length)
        return part

    def _list_folder(
        self, exchange: Exchange, datastore: LabDatastore, path: DatastorePath
    ) -> None:
        query = urlencode({k: v for k, v in exchange.query.items() if k in ("dcPath", "dsName")})
        rows = []
        for entry in datastore.files.list(path.path):
            slash = "/" if entry.is_folder else ""
            href = f"{PREFIX}/{quote(path.child(entry.name).path)}{slash}?{query}"
            rows.append((entry.name + slash, href))
        title = f"Index of {path}"
        exchange.answer(HTTPStatus.OK, _page(title, rows), "text/html; charset=utf-8")

    # writing

    def _write(self, exchange: Exchange, datastore: LabDatastore, path: DatastorePath) -> None:
        files = datastore.files
        found, folder = files.stat(path.path), files.stat(path.folder.path)
        if (found is not None and found.is_folder) or folder is None or not folder.is_folder:
            raise FileMissingError(f"{path} cannot be a file")
        number = next(_numbers)
        temp = path.sibling(f".upload-{number}.tmp")
        full = self._switches.take(FaultName.NO_SPACE, host=exchange.place.name, path=exchange.path)
        with self._locks.held(f"http {number}", [(path, LockMode.EXCLUSIVE)]):
            files.create(temp.path)
            try:
                offset = 0
                for piece in exchange.body_pieces():
                    if full and offset + len(piece) > full.whole_amount:
                        raise NoSpaceError(f"no space for {path}")
                    files.write_at(temp.path, offset, piece)
                    offset += len(piece)
                if files.stat(path.path) is not None:
                    files.delete(path.path)
                files.rename(temp.path, path.path)
            except BaseException:
                files.delete(temp.path)
                raise
        exchange.answer(HTTPStatus.OK if found else HTTPStatus.CREATED)

    def _delete(self, exchange: Exchange, datastore: LabDatastore, path: DatastorePath) -> None:
        self._locks.refuse_unless_free(path)
        with self._locks.held(f"http {next(_numbers)}", [(path, LockMode.EXCLUSIVE)]):
            datastore.files.delete(path.path)
        exchange.answer(HTTPStatus.NO_CONTENT)


def _file_headers(entry: FileEntry) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/octet-stream"),
        ("Accept-Ranges", "bytes"),
        ("Last-Modified", formatdate(entry.modified_at_s, usegmt=True)),
    ]


def _page(title: str, rows: Sequence[tuple[str, str]]) -> bytes:
    lines = (
        f'<tr><td><a href="{escape(href)}">{escape(text)}</a></td></tr>' for text, href in rows
    )
    body = f"<html><head><title>{escape(title)}</title></head><body><h1>{escape(title)}</h1>"
    return f"{body}<table>{''.join(lines)}</table></body></html>".encode()
