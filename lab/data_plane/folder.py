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
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from html import escape
from http import HTTPStatus
from typing import Protocol
from urllib.parse import quote, urlencode

from lab.data_plane.access import Gate, Privileges
from lab.data_plane.faulty_body import spoiled, strike
from lab.data_plane.place import HTML, Refusal, error_page
from lab.data_plane.ranges import (
    ByteRange,
    RangeNotSatisfiableError,
    parse_range,
    whole_file,
)
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
from lab.vcenter.http_message import ConnectionCut, HttpReply, HttpRequest

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
        self._place = gate.place
        self._privileges = privileges
        self._locks = locks
        self._switches = switches

    def __call__(self, request: HttpRequest) -> HttpReply:
        by_ticket = False
        try:
            strike(self._place, request, self._switches)
            caller = self._gate.caller(request)
            by_ticket = caller.by_ticket
            reply = self._answer(request, caller.user)
        except Refusal as refusal:
            reply = refusal.reply
        except HostError as error:
            status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
            reply = error_page(status, escape(str(error)))
        reply.close = reply.close or by_ticket  # one ticket, one request, one connection
        return reply

    def _answer(self, request: HttpRequest, user: str) -> HttpReply:
        datacenter = self._datacenter(request)
        name = request.parameter("dsName")
        relative = request.path.removeprefix(PREFIX).strip("/")
        if datacenter is None or name is None:
            return self._list_tree(request, datacenter, relative)
        datastore = next((d for d in self._tree.datastores(datacenter) if d.name == name), None)
        if datastore is None:
            raise FileMissingError(f"no datastore {name} in {datacenter}")
        entity = self._tree.entity(datacenter, name)
        self._require(user, "Datastore.Browse", entity)
        path = datastore.path(relative)
        entry = datastore.files.stat(path.path)
        if request.method in ("GET", "HEAD") and entry is not None and entry.is_folder:
            return self._list_folder(request, datastore, path)
        if request.method == "HEAD" and entry is not None:
            return HttpReply(headers=_file_headers(entry), length=entry.size_bytes)
        self._require(user, "Datastore.FileManagement", entity)
        return self._access_file(request, datastore, path)

    def _access_file(
        self, request: HttpRequest, datastore: LabDatastore, path: DatastorePath
    ) -> HttpReply:
        if request.method == "PUT":
            return self._write(request, datastore, path)
        entry = datastore.files.stat(path.path)
        if entry is None:
            raise FileMissingError(f"{path} was not found")
        if request.method == "DELETE":
            return self._delete(datastore, path)
        if request.method == "GET":
            return self._read(request, datastore, path, entry)
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "not for datastore files")

    def _datacenter(self, request: HttpRequest) -> str | None:
        """A host has one datacenter that need not be named; vCenter's must be.

        Clients write the inventory path with a slash in front (govc) or without.
        """
        named = request.parameter("dcPath")
        if named is not None:
            return named.strip("/")
        return None if self._place.is_vcenter else HOST_DATACENTER

    def _require(self, user: str, privilege: str, entity: str) -> None:
        if not self._privileges.allows(user, privilege, entity):
            raise Refusal(HTTPStatus.FORBIDDEN, f"privilege {privilege} is missing")

    # reading

    def _list_tree(self, request: HttpRequest, datacenter: str | None, relative: str) -> HttpReply:
        """Above the datastores: the datacenters, or the datastores of one."""
        if request.method not in ("GET", "HEAD") or relative:
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
        return _page("Index", [(text, f"{PREFIX}?{urlencode(query)}") for text, query in links])

    def _list_folder(
        self, request: HttpRequest, datastore: LabDatastore, path: DatastorePath
    ) -> HttpReply:
        chosen = {name: request.parameter(name) or "" for name in ("dcPath", "dsName")}
        query = urlencode({name: value for name, value in chosen.items() if value})
        rows = []
        for entry in datastore.files.list(path.path):
            slash = "/" if entry.is_folder else ""
            href = f"{PREFIX}/{quote(path.child(entry.name).path)}{slash}?{query}"
            rows.append((entry.name + slash, href))
        return _page(f"Index of {path}", rows)

    def _read(
        self, request: HttpRequest, datastore: LabDatastore, path: DatastorePath, entry: FileEntry
    ) -> HttpReply:
        fields = {"host": self._place.name, "path": request.path}
        if self._switches.take(FaultName.FILE_LOCKED, **fields):
            raise FileLockedError(f"{path} is locked")
        if path.name.endswith(".vmdk") and self._switches.take(
            FaultName.DESCRIPTOR_STREAMS_DISK, **fields
        ):
            path = path.sibling(f"{path.name.removesuffix('.vmdk')}-flat.vmdk")
            entry = datastore.files.stat(path.path) or entry
        try:
            part = parse_range(request.header("Range"), entry.size_bytes)
        except RangeNotSatisfiableError:
            size = ("Content-Range", f"bytes */{entry.size_bytes}")
            raise Refusal(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "", size) from None
        if part is not None and self._switches.take(FaultName.RANGE_IGNORED, **fields):
            part = None
        reply = HttpReply(headers=_file_headers(entry), length=entry.size_bytes)
        if part is not None:
            shown = part
            if self._switches.take(FaultName.WRONG_RANGE, **fields):
                shown = ByteRange(part.start + 512, part.stop + 512, part.size)
            reply.status, reply.length = HTTPStatus.PARTIAL_CONTENT.value, part.length
            reply.headers.append(("Content-Range", shown.content_range))
        if any(lock.holder.startswith("nfc ") for lock in self._locks.locks(path)):
            raise FileLockedError(f"{path} is open for an NFC transfer")
        holder = f"http {next(_numbers)}"
        if not path.name.endswith(".vmx"):  # the host that holds it answers for it
            self._locks.acquire(holder, [(path, LockMode.SHARED)])
        reply.done = lambda: self._locks.release(holder)
        pieces = self._pieces(holder, datastore, path, part or whole_file(entry.size_bytes))
        reply.body = spoiled(pieces, self._place, request, self._switches)
        return reply

    def _pieces(
        self, holder: str, datastore: LabDatastore, path: DatastorePath, part: ByteRange
    ) -> Iterator[bytes]:
        offset = part.start
        while offset < part.stop:
            count = min(_PIECE_BYTES, part.stop - offset)
            try:
                data = datastore.files.read_at(path.path, offset, count)
            except HostError as error:
                raise ConnectionCut(str(error)) from error
            if len(data) != count:
                raise ConnectionCut(f"{path} became shorter")
            offset += count
            if offset == part.stop:  # a client that has everything finds the file free
                self._locks.release(holder)
            yield data

    # writing

    def _write(
        self, request: HttpRequest, datastore: LabDatastore, path: DatastorePath
    ) -> HttpReply:
        if request.body.length == 0 and request.header("Content-Length") is None:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "a body needs a length")
        files = datastore.files
        found, folder = files.stat(path.path), files.stat(path.folder.path)
        if (found is not None and found.is_folder) or folder is None or not folder.is_folder:
            raise FileMissingError(f"{path} cannot be a file")
        number = next(_numbers)
        temp = path.sibling(f".upload-{number}.tmp")
        full = self._switches.take(FaultName.NO_SPACE, host=self._place.name, path=request.path)
        with self._locks.held(f"http {number}", [(path, LockMode.EXCLUSIVE)]):
            files.create(temp.path)
            try:
                offset = 0
                while piece := request.body.read(_PIECE_BYTES):
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
        return HttpReply(status=(HTTPStatus.OK if found else HTTPStatus.CREATED).value)

    def _delete(self, datastore: LabDatastore, path: DatastorePath) -> HttpReply:
        if not path.path:
            raise FileMissingError("the datastore itself stays")
        self._locks.refuse_unless_free(path)
        with self._locks.held(f"http {next(_numbers)}", [(path, LockMode.EXCLUSIVE)]):
            datastore.files.delete(path.path)
        return HttpReply(status=HTTPStatus.NO_CONTENT.value)


def _file_headers(entry: FileEntry) -> list[tuple[str, str]]:
    return [
        ("Content-Type", "application/octet-stream"),
        ("Accept-Ranges", "bytes"),
        ("Last-Modified", formatdate(entry.modified_at_s, usegmt=True)),
    ]


def _page(title: str, rows: Sequence[tuple[str, str]]) -> HttpReply:
    lines = (
        f'<tr><td><a href="{escape(href)}">{escape(text)}</a></td></tr>' for text, href in rows
    )
    body = f"<html><head><title>{escape(title)}</title></head><body><h1>{escape(title)}</h1>"
    page = f"{body}<table>{''.join(lines)}</table></body></html>"
    return HttpReply(headers=[HTML], body=page.encode())
