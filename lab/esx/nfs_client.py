"""NFSv3 procedures on file handles, with the rules that an ESXi host insists on.

Every answer is checked: handles of at most 56 bytes, attributes in every reply that has a place for
them, `eof` where a read reaches the end, whole writes that are committed before the reply, a file
system that stays the same. A server that breaks one gets NfsProtocolError, where a host would lose
the datastore or the data. Shares no code with the product's server.

Thread model: any thread. Source: RFC 1813; design notes on vSphere, section 5 "What the ESXi NFSv3
client needs", and on exports, B.4 to B.12.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from lab.esx.errors import FileFaultError, FileMissingError, FileThereError, HostError, NoSpaceError
from lab.esx.nfs_rpc import RpcConnection
from lab.esx.nfs_xdr import NfsProtocolError, Reader, opaque, u32, u64

HANDLE_BYTES_MAX = 56
IO_BYTES_MAX = 256 * 1024  # ESXi clamps what the server offers
_NFS, _VERSION = 100003, 3
_NAME_BYTES_MAX = 255
_FILE_SYNC = 2
_LISTING_BYTES = 32 * 1024
_ENTRIES_MAX = 100_000
_KEEP = u32(0)


class Kind(IntEnum):
    FILE = 1
    FOLDER = 2


class Status(IntEnum):
    """What a server may answer, and this client tells apart."""

    OK = 0
    NOENT = 2
    EXIST = 17
    NOTDIR = 20
    NOSPC = 28
    DQUOT = 69
    STALE = 70


class NfsStatusError(FileFaultError):
    """The server refused the operation with another status than those that have errors here."""


@dataclass(frozen=True, slots=True)
class Attributes:
    kind: int
    size_bytes: int
    used_bytes: int
    fsid: int
    fileid: int
    modified_at_s: float


@dataclass(frozen=True, slots=True)
class Found:
    handle: bytes
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    fileid: int


class NfsClient:
    """Of one file system: the root's. `timeout_s` is how long each call waits for its reply."""

    def __init__(self, connection: RpcConnection, root: bytes, *, timeout_s: float) -> None:
        """Raises HostError where the root cannot be used."""
        self.root = checked_handle(root)
        self._connection = connection
        self.timeout_s = timeout_s
        self._fsid: int | None = None
        self.read_bytes, self.write_bytes = self._limits()
        self._fsid = self.get_attributes(self.root).fsid

    # ------------------------------------------------------------------ attributes

    def get_attributes(self, handle: bytes, *, timeout_s: float | None = None) -> Attributes:
        reader = self._call(1, opaque(handle), "GETATTR", timeout_s=timeout_s)
        found = self._attributes(reader)
        reader.finish()
        return found

    def resize(self, handle: bytes, size_bytes: int) -> None:
        size = u32(1) + u64(size_bytes)
        changes = _KEEP * 3 + size + _KEEP * 2
        reader = self._call(2, opaque(handle) + changes + u32(0), "SETATTR", failed=_wcc)
        found = self._changed(reader)
        reader.finish()
        if found.size_bytes != size_bytes:
            raise NfsProtocolError(f"SETATTR made a size of {found.size_bytes} bytes")

    def space(self, *, timeout_s: float | None = None) -> tuple[int, int]:
        """Capacity and free bytes."""
        reader = self._call(18, opaque(self.root), "FSSTAT", failed=_post_op, timeout_s=timeout_s)
        self._present(reader, "FSSTAT")
        total, _free, available = reader.u64(), reader.u64(), reader.u64()
        for _ in range(3):
            reader.u64()
        reader.u32()
        reader.finish()
        return total, available

    def _limits(self) -> tuple[int, int]:
        reader = self._call(19, opaque(self.root), "FSINFO", failed=_post_op)
        self._present(reader, "FSINFO")
        read_max, _, _, write_max, *_rest = (reader.u32() for _ in range(7))
        reader.u64()
        reader.fixed(8)
        reader.u32()
        reader.finish()
        if min(read_max, write_max) < 4096:
            raise NfsProtocolError(f"FSINFO offers reads of {read_max}, writes of {write_max}")
        return min(read_max, IO_BYTES_MAX), min(write_max, IO_BYTES_MAX)

    # ------------------------------------------------------------------ names

    def lookup(self, folder: bytes, name: str) -> Found | None:
        """None when nothing is there."""
        try:
            reader = self._call(3, _place(folder, name), "LOOKUP", failed=_post_op)
        except FileMissingError:
            return None
        handle = checked_handle(reader.opaque(64))
        found = Found(handle, self._present(reader, "LOOKUP"))
        self._post_op(reader)
        reader.finish()
        return found

    def create(self, folder: bytes, name: str) -> Found:
        """Exclusively. Raises FileThereError."""
        how = u32(2) + secrets.token_bytes(8)
        return self._made(8, _place(folder, name) + how, "CREATE")

    def make_folder(self, folder: bytes, name: str) -> Found:
        mode = u32(1, 0o755)
        return self._made(9, _place(folder, name) + mode + _KEEP * 5, "MKDIR")

    def remove(self, folder: bytes, name: str) -> None:
        self._unlink(12, folder, name, "REMOVE")

    def remove_folder(self, folder: bytes, name: str) -> None:
        self._unlink(13, folder, name, "RMDIR")

    def rename(self, folder: bytes, name: str, to_folder: bytes, to_name: str) -> None:
        """Replaces what is there."""
        places = _place(folder, name) + _place(to_folder, to_name)
        reader = self._call(14, places, "RENAME", failed=_two_wcc)
        self._changed(reader)
        self._changed(reader)
        reader.finish()

    def list(self, folder: bytes) -> list[Entry]:
        """Without the folder itself and its parent."""
        return [one for one in self._entries(folder) if one.name not in (".", "..")]

    def _entries(self, folder: bytes) -> Iterator[Entry]:
        cookie, verifier, seen = 0, bytes(8), set[int]()
        while True:
            asked = opaque(folder) + u64(cookie) + verifier + u32(_LISTING_BYTES)
            reader = self._call(16, asked, "READDIR", failed=_post_op)
            self._present(reader, "READDIR")
            verifier = reader.fixed(8)
            while reader.flag():
                fileid = reader.u64()
                name = reader.opaque(_NAME_BYTES_MAX).decode("utf-8", "surrogateescape")
                cookie = reader.u64()
                if cookie in seen or len(seen) == _ENTRIES_MAX:
                    raise NfsProtocolError("READDIR goes in circles")
                seen.add(cookie)
                yield Entry(name, fileid)
            ended = reader.flag()
            reader.finish()
            if ended:
                return

    # ------------------------------------------------------------------ data

    def read(self, handle: bytes, offset: int, length: int) -> tuple[bytes, bool]:
        """Up to `length` bytes, at most `read_bytes`; True when they reach the file's end."""
        count = min(length, self.read_bytes)
        asked = opaque(handle) + u64(offset) + u32(count)
        reader = self._call(6, asked, "READ", failed=_post_op)
        size = self._present(reader, "READ").size_bytes
        returned, end = reader.u32(), reader.flag()
        data = reader.opaque(count)
        reader.finish()
        if len(data) != returned:
            raise NfsProtocolError(f"READ says {returned} bytes and sends {len(data)}")
        if end != (offset + returned >= size):
            raise NfsProtocolError(f"READ of [{offset}, +{returned}) of {size} bytes: eof is {end}")
        if returned < count and not end:
            raise NfsProtocolError(f"READ was short before the end: {returned} of {count} bytes")
        return data, end

    def write(self, handle: bytes, offset: int, data: bytes | memoryview) -> int:
        """Write at most `write_bytes`, safe at return; return how many it were."""
        part = memoryview(data)[: self.write_bytes]
        asked = opaque(handle) + u64(offset) + u32(len(part), _FILE_SYNC) + opaque(part)
        reader = self._call(7, asked, "WRITE", failed=_wcc)
        found = self._changed(reader)
        written, committed = reader.u32(), reader.u32()
        reader.fixed(8)
        reader.finish()
        if not 0 < written <= len(part) or committed != _FILE_SYNC:
            raise NfsProtocolError(f"WRITE of {len(part)} bytes: {written}, stable {committed}")
        if found.size_bytes < offset + written:
            raise NfsProtocolError(f"WRITE left a size of {found.size_bytes} bytes")
        return written

    # ------------------------------------------------------------------ replies

    def _call(
        self,
        procedure: int,
        arguments: bytes,
        name: str,
        *,
        failed: str = "",
        timeout_s: float | None = None,
    ) -> Reader:
        """The body after an OK status; the body of a failure is read, too: it has to be whole."""
        reader = self._connection.call(
            *(_NFS, _VERSION, procedure, arguments), timeout_s=timeout_s or self.timeout_s
        )
        status = reader.u32()
        if status == Status.OK:
            return reader
        for part in failed:
            if part == _BEFORE and reader.flag():
                reader.fixed(24)
            elif part == _AFTER:
                self._post_op(reader)
        reader.finish()
        raise _status_error(status, name)

    def _made(self, procedure: int, arguments: bytes, name: str) -> Found:
        reader = self._call(procedure, arguments, name, failed=_wcc)
        if not reader.flag():
            raise NfsProtocolError(f"{name} returned no handle")
        handle = checked_handle(reader.opaque(64))
        found = Found(handle, self._present(reader, name))
        self._changed(reader)
        reader.finish()
        return found

    def _unlink(self, procedure: int, folder: bytes, name: str, what: str) -> None:
        reader = self._call(procedure, _place(folder, name), what, failed=_wcc)
        self._changed(reader)
        reader.finish()

    def _attributes(self, reader: Reader) -> Attributes:
        kind, _mode, links, _uid, _gid = (reader.u32() for _ in range(5))
        size, used = reader.u64(), reader.u64()
        reader.fixed(8)
        fsid, fileid = reader.u64(), reader.u64()
        reader.fixed(8)
        seconds, nanoseconds = reader.u32(), reader.u32()
        reader.fixed(8)
        if not links or not fileid or not 1 <= kind <= 7 or nanoseconds >= 10**9:
            raise NfsProtocolError(f"attributes of kind {kind}, {links} links, id {fileid}")
        if self._fsid is not None and fsid != self._fsid:
            raise NfsProtocolError(f"the file system has become another: {fsid:#x}")
        return Attributes(kind, size, used, fsid, fileid, seconds + nanoseconds / 1e9)

    def _post_op(self, reader: Reader) -> Attributes | None:
        return self._attributes(reader) if reader.flag() else None

    def _present(self, reader: Reader, name: str) -> Attributes:
        found = self._post_op(reader)
        if found is None:
            raise NfsProtocolError(f"{name} returned no attributes")
        return found

    def _changed(self, reader: Reader) -> Attributes:
        """wcc_data of what was changed. What was before may be missing: ganesha leaves it out."""
        if reader.flag():
            reader.fixed(24)
        return self._present(reader, "a change")


# What a failure's body holds: wcc_data is attributes of before and after, post_op only the latter.
_BEFORE, _AFTER = "b", "a"
_post_op, _wcc, _two_wcc = _AFTER, _BEFORE + _AFTER, 2 * (_BEFORE + _AFTER)


def checked_handle(handle: bytes) -> bytes:
    """Raises NfsProtocolError for one that ESXi cannot keep."""
    if not 0 < len(handle) <= HANDLE_BYTES_MAX:
        raise NfsProtocolError(f"a file handle of {len(handle)} bytes")
    return handle


def _place(folder: bytes, name: str) -> bytes:
    return opaque(folder) + opaque(name.encode("utf-8", "surrogateescape"))


def _status_error(status: int, name: str) -> HostError:
    if status in (Status.NOENT, Status.NOTDIR):
        return FileMissingError(f"{name}: there is no such file")
    if status == Status.EXIST:
        return FileThereError(f"{name}: the file is there already")
    if status in (Status.NOSPC, Status.DQUOT):
        return NoSpaceError(f"{name}: no space is left")
    return NfsStatusError(f"{name}: the server answers {status}")
