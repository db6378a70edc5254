"""The SMB client of the practice host: shares mapped for the whole host, and files on them.

A file that a machine has open waits for its server: when the connection is lost, every request is
tried again on a new one, as a host pauses a machine whose storage is away and goes on later.

Invariants: a file that is open for writing lets others read only. After `close` nobody waits.
Thread model: `SmbClient` any thread; an `SmbBytes` one caller at a time.
Source: design notes on Hyper-V, sections 6 and 8.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from smbprotocol.connection import Connection
from smbprotocol.exceptions import SMBException
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FileAttributes,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    ShareAccess,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect

from lab.hyperv_host.errors import HypervError, NotFoundError
from lab.hyperv_host.windows_path import WindowsPath

_PART_BYTES = 256 * 1024
_CREDITS = 64
_WAITS_FOR_S = 300.0
_PAUSE_S = 0.2
_CONNECT_S = 10
_Found = TypeVar("_Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    path: str  # \\server\share
    server: str
    port: int
    user: str
    password: str

    def __repr__(self) -> str:
        return f"Mapping({self.path})"


class SmbClient:
    """The mappings of the host."""

    def __init__(self) -> None:
        self._mappings: dict[str, Mapping] = {}
        self._lock = threading.Lock()
        self.closing = threading.Event()

    def map(self, mapping: Mapping) -> None:
        """Log in once, to see that it works. Raises HypervError."""
        connection = Connection(uuid.uuid4(), mapping.server, mapping.port, require_signing=True)
        try:
            _tree(connection, mapping)
        except (SMBException, OSError, ValueError) as error:
            raise HypervError(f"The share '{mapping.path}' cannot be mapped: {error}") from error
        finally:
            with contextlib.suppress(SMBException, OSError, ValueError):
                connection.disconnect(True)
        with self._lock:
            self._mappings[mapping.path.lower()] = mapping

    def unmap(self, path: str) -> bool:
        with self._lock:
            return self._mappings.pop(path.lower(), None) is not None

    def mapped(self) -> list[str]:
        with self._lock:
            return [mapping.path for mapping in self._mappings.values()]

    def file(self, path: WindowsPath) -> SmbPlace:
        """Raises NotFoundError: its share is not mapped."""
        with self._lock:
            mapping = self._mappings.get(path.share.lower())
        if mapping is None:
            raise NotFoundError(f"The network path '{path.share}' was not found.")
        return SmbPlace(mapping, "\\".join(path.parts), self.closing)

    def close(self) -> None:
        self.closing.set()


@dataclass(frozen=True, slots=True)
class SmbPlace:
    """A file of a share, as a Path is one of this machine."""

    mapping: Mapping
    inside: str
    closing: threading.Event

    @property
    def name(self) -> str:
        return self.inside.rpartition("\\")[2]

    def exists(self) -> bool:
        try:
            self.open(writable=False).close()
        except (HypervError, OSError):
            return False
        return True

    def open(self, *, writable: bool) -> SmbBytes:
        """Raises OSError."""
        return SmbBytes(self, writable=writable)

    def unlink(self, missing_ok: bool = False) -> None:
        """Raises OSError."""
        opened = SmbBytes(self, writable=False, delete=True)
        opened.close()


class SmbBytes:
    """One open file."""

    def __init__(self, place: SmbPlace, *, writable: bool, delete: bool = False) -> None:
        self._place = place
        self._writable = writable
        self._delete = delete
        self._connection: Connection | None = None
        self._open: Open | None = None
        try:
            self._connect()
        except (SMBException, ValueError) as error:
            self._drop()
            raise OSError(f"{place.mapping.path}\\{place.inside}: {error}") from error
        except BaseException:
            self._drop()
            raise

    def size(self) -> int:
        assert self._open is not None
        return int(self._open.end_of_file)

    def pread(self, length: int, offset: int) -> bytes:
        parts = []
        for at in range(offset, offset + length, _PART_BYTES):
            count = min(_PART_BYTES, offset + length - at)
            parts.append(self._patiently(partial(_read, offset=at, length=count)))
        return b"".join(parts)

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while len(view):
            part = bytes(view[:_PART_BYTES])
            self._patiently(partial(_write, part=part, offset=offset))
            offset, view = offset + len(part), view[len(part) :]

    def sync(self) -> None:
        self._patiently(_flush)

    def truncate(self, size_bytes: int) -> None:
        raise OSError("a file on a share does not grow here")

    def close(self) -> None:
        opened, self._open = self._open, None
        if opened is not None:
            with contextlib.suppress(SMBException, OSError, ValueError):
                opened.close()
        self._drop()

    def _patiently(self, ask: Callable[[Open], _Found]) -> _Found:
        """Again and again until the server answers. Raises OSError: it does not in time."""
        failure: Exception | None = None
        for _ in range(int(_WAITS_FOR_S / _PAUSE_S)):
            try:
                if self._open is None:
                    self._connect()
                assert self._open is not None
                return ask(self._open)
            except (SMBException, OSError, ValueError) as error:
                failure = error
                self._drop()
            if self._place.closing.wait(_PAUSE_S):
                break
        raise OSError(f"{self._place.mapping.path}: {failure}")

    def _connect(self) -> None:
        mapping = self._place.mapping
        connection = Connection(uuid.uuid4(), mapping.server, mapping.port, require_signing=True)
        self._connection = connection
        tree = _tree(connection, mapping)
        connection.echo(sid=tree.session.session_id, credit_request=_CREDITS)
        access = FilePipePrinterAccessMask.GENERIC_READ
        options = CreateOptions.FILE_NON_DIRECTORY_FILE
        share = ShareAccess.FILE_SHARE_READ
        if self._writable:
            access |= FilePipePrinterAccessMask.GENERIC_WRITE
        else:
            share |= ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE
        if self._delete:
            access |= FilePipePrinterAccessMask.DELETE
            options |= CreateOptions.FILE_DELETE_ON_CLOSE
        opened = Open(tree, self._place.inside)
        opened.create(
            ImpersonationLevel.Impersonation,
            access,
            FileAttributes.FILE_ATTRIBUTE_NORMAL,
            share,
            CreateDisposition.FILE_OPEN,
            options,
        )
        self._open = opened

    def _drop(self) -> None:
        connection, self._connection, self._open = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(SMBException, OSError, ValueError):
                connection.disconnect(False)


def _read(file: Open, *, offset: int, length: int) -> bytes:
    return bytes(file.read(offset, length))


def _write(file: Open, *, part: bytes, offset: int) -> None:
    file.write(part, offset)


def _flush(file: Open) -> None:
    file.flush()


def _tree(connection: Connection, mapping: Mapping) -> TreeConnect:
    connection.connect(timeout=_CONNECT_S)
    session = Session(connection, mapping.user, mapping.password, require_encryption=True)
    session.connect()
    tree = TreeConnect(session, mapping.path)
    tree.connect(require_secure_negotiate=False)
    return tree
