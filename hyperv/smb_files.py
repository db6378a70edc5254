"""Disk files of a Hyper-V host, read over SMB 3: pipelined, and signed or encrypted.

Data path: `vhdx` readers ask an `SmbFile` (structurally a `vhdx.source.BatchSource`) -> smbprotocol
-> the host's admin share, or a share made for it. One `SmbConnection` per disk: its files share a
TCP connection, and disks do not wait for each other. `smb_writing` opens files for a restore.

Invariants: files are opened here for reading only, and others may go on doing what they like with
them (share read, write, delete), so that a VM is never in our way nor we in its; every handle is
closed when `close` returns, which is what the merge of a checkpoint waits for. Every message is
signed or encrypted. Waiting for the host is bounded.

Thread model: any thread; requests of one connection take turns, each keeping several reads under
way. Source: [MS-SMB2] 2.2.19, 3.2.4.1.2 (credits); smbprotocol 1.17.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final
from uuid import uuid4

from smbprotocol.connection import Connection
from smbprotocol.exceptions import (
    AccessDenied,
    LogonFailure,
    ObjectNameNotFound,
    ObjectPathNotFound,
    SharingViolation,
    SMBAuthenticationError,
    SMBConnectionClosed,
    SMBException,
    SMBResponseException,
)
from smbprotocol.open import (
    CreateDisposition,
    CreateOptions,
    FileAttributes,
    FilePipePrinterAccessMask,
    ImpersonationLevel,
    Open,
    ShareAccess,
    SMB2ReadResponse,
)
from smbprotocol.session import Session
from smbprotocol.tree import TreeConnect
from spnego.exceptions import SpnegoError

from hyperv.errors import (
    AccessError,
    FileError,
    FileUnreachableError,
    FullError,
    GoneError,
    HypervError,
    LoginError,
    SharingError,
)
from hyperv.windows_path import SharedPath

PORT: Final = 445
CONNECT_TIMEOUT_S: Final = 20
ANSWER_TIMEOUT_S: Final = 120  # of one read; a disk under load may take its time
READ_BYTES: Final = 1 << 20  # of one request
_CREDIT_BYTES = 65536
_WANTED_CREDITS = 128  # eight reads of 1 MiB under way
_FIRST_DIALECT = 0x0300
_SHARE_ANY = (
    ShareAccess.FILE_SHARE_READ | ShareAccess.FILE_SHARE_WRITE | ShareAccess.FILE_SHARE_DELETE
)
_READ = FilePipePrinterAccessMask.FILE_READ_DATA | FilePipePrinterAccessMask.FILE_READ_ATTRIBUTES


class Protection(StrEnum):
    SIGNED = "signed"
    ENCRYPTED = "encrypted"


@dataclass(frozen=True, slots=True, kw_only=True)
class SmbLogin:
    address: str
    user: str
    password: Callable[[], str] = field(repr=False, compare=False)
    port: int = PORT
    protection: Protection = Protection.SIGNED
    is_kerberos: bool = False


class SmbConnection:
    """One TCP connection; connects when made. Raises: as `open_file`."""

    def __init__(self, login: SmbLogin) -> None:
        self._login = login
        self._lock = threading.RLock()
        self._trees: dict[str, TreeConnect] = {}
        self._files: list[SmbFile] = []
        self._connection = Connection(uuid4(), login.address, login.port, require_signing=True)
        with translated(f"{login.address}:{login.port}"):
            try:
                self._connection.connect(timeout=CONNECT_TIMEOUT_S)
                if self._connection.dialect < _FIRST_DIALECT:
                    raise FileError(f"{login.address} speaks SMB 2 only; SMB 3 is needed")
                self._session = Session(
                    self._connection,
                    login.user,
                    login.password(),
                    require_encryption=login.protection is Protection.ENCRYPTED,
                    auth_protocol="kerberos" if login.is_kerberos else "negotiate",
                )
                self._session.connect()
                self._connection.echo(
                    self._session.session_id,
                    timeout=CONNECT_TIMEOUT_S,
                    credit_request=_WANTED_CREDITS,
                )
            except BaseException:
                self._drop()
                raise

    @property
    def is_encrypted(self) -> bool:
        return bool(self._session.encrypt_data)

    def open_file(self, where: SharedPath) -> SmbFile:
        """Open a file for reading.

        Raises:
            SharingError: something else has it open and allows no reading: it is not frozen.
            GoneError: no such share or file; AccessError, LoginError.
            FileUnreachableError: the connection broke; FileError.
        """
        handle, name = self.opened(where, _READ, _SHARE_ANY)
        file = SmbFile(self, handle, name)
        with self._lock:
            self._files.append(file)
        return file

    def opened(self, where: SharedPath, access: int, sharing: int) -> tuple[Open, str]:
        """Open a file that exists; return its handle and its name for messages.

        Raises: as `open_file`.
        """
        name = f"\\\\{self._login.address}\\{where.share}\\{where.path}"
        with self._lock, translated(name):
            tree = self._trees.get(where.share)
            if tree is None:
                tree = TreeConnect(self._session, f"\\\\{self._login.address}\\{where.share}")
                tree.connect()
                self._trees[where.share] = tree
            handle = Open(tree, where.path)
            handle.create(
                ImpersonationLevel.Impersonation,
                access,
                FileAttributes.FILE_ATTRIBUTE_NORMAL,
                sharing,
                CreateDisposition.FILE_OPEN,
                CreateOptions.FILE_NON_DIRECTORY_FILE,
            )
            return handle, name

    def read(self, handle: Open, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read ranges that lie inside the file, several requests under way at a time."""
        most_bytes = self.piece_bytes(int(self._connection.max_read_size))
        pieces = [list(_cut(offset, length, most_bytes)) for offset, length in ranges]
        todo = deque(piece for of_range in pieces for piece in of_range)
        with self._lock, translated(name):
            blocks = self._pipelined(handle, name, todo)
        found = iter(blocks)
        return [b"".join(next(found) for _ in of_range) for of_range in pieces]

    def close(self) -> None:
        """Close every handle and the connection; idempotent, never raises."""
        with self._lock:
            for file in self._files:
                file.close()
            self._files.clear()
            self._drop()

    def piece_bytes(self, most_bytes: int) -> int:
        """How much one request moves, of a host that allows `most_bytes`."""
        if not self._connection.supports_multi_credit:
            return _CREDIT_BYTES
        return min(READ_BYTES, most_bytes)

    @property
    def write_bytes(self) -> int:
        """The most that one write moves."""
        return self.piece_bytes(int(self._connection.max_write_size))

    # What `smb_writing` sends

    def begin(self, handle: Open, name: str, message: Any, moved_bytes: int) -> Any | None:
        """Send a message without waiting for its answer; None: the host has granted no credits for
        it, so answers of others have to be taken first."""
        with self._lock, translated(name):
            if not self._has_credits(moved_bytes):
                return None
            return self._send(handle, message, moved_bytes)

    def end(self, name: str, request: Any) -> bytes:
        """Wait for the answer. Raises: as `open_file`, FullError."""
        with self._lock, translated(name):
            answer = self._connection.receive(request, timeout=ANSWER_TIMEOUT_S)
            return bytes(answer["data"].get_value())

    # Under the lock

    def _send(self, handle: Open, message: Any, moved_bytes: int) -> Any:
        return self._connection.send(
            message,
            sid=self._session.session_id,
            tid=handle.tree_connect.tree_connect_id,
            credit_request=_cost(moved_bytes),  # as many as it uses up
        )

    def _pipelined(self, handle: Open, name: str, todo: deque[tuple[int, int]]) -> list[bytes]:
        connection = self._connection
        blocks: list[bytes] = []
        under_way: deque[tuple[Any, int]] = deque()
        while todo or under_way:
            while todo and self._has_credits(todo[0][1]):
                offset, length = todo.popleft()
                message, _ = handle.read(offset, length, send=False)
                under_way.append((self._send(handle, message, length), length))
            if not under_way:
                raise FileUnreachableError(f"{name}: the host grants no credits")
            request, length = under_way.popleft()
            answer = SMB2ReadResponse()
            answer.unpack(connection.receive(request, timeout=ANSWER_TIMEOUT_S)["data"].get_value())
            block = answer["buffer"].get_value()
            if len(block) != length:
                raise FileError(f"{name}: a read of {length} bytes gave {len(block)}")
            blocks.append(block)
        return blocks

    @property
    def _credits(self) -> int:
        window = self._connection.sequence_window
        return int(window["high"] - window["low"])

    def _has_credits(self, length: int) -> bool:
        return self._credits >= _cost(length)

    def _drop(self) -> None:
        self._trees.clear()
        try:
            self._connection.disconnect(close=True, timeout=CONNECT_TIMEOUT_S)
        except (SMBException, OSError, ValueError, AttributeError):
            with suppress(SMBException, OSError, AttributeError):  # it never was connected
                self._connection.disconnect(close=False)


class SmbFile:
    """A file, open for reading; closed by its connection at the latest."""

    def __init__(self, connection: SmbConnection, handle: Open, name: str) -> None:
        self._connection = connection
        self._handle = handle
        self._is_closed = False
        self.name = name
        self._size_bytes = int(handle.end_of_file)

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        """Return the bytes of [offset, offset + length), fewer only at the end of the file.

        Raises: as `SmbConnection.open_file`.
        """
        return self.read_many([(offset, length)])[0]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return what `read_at` would for each (offset, length), in the order of `ranges`."""
        if self._is_closed:
            raise FileError(f"{self.name} was closed while it was read")
        inside = [
            (offset, max(min(length, self._size_bytes - offset), 0)) for offset, length in ranges
        ]
        return self._connection.read(self._handle, self.name, inside)

    def close(self) -> None:
        """Idempotent, never raises: a handle that cannot be closed ends with the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(SMBException, OSError):
            self._handle.close()


def _cut(offset: int, length: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    end = offset + length
    while offset < end:
        yield offset, min(most_bytes, end - offset)
        offset += most_bytes


def _cost(length: int) -> int:
    """Credits of a request that moves so much, [MS-SMB2] 3.1.5.2."""
    return max(length - 1, 0) // _CREDIT_BYTES + 1


@contextmanager
def translated(name: str) -> Iterator[None]:
    """What smbprotocol raises in the block becomes a HypervError that begins with `name`."""
    try:
        yield
    except HypervError:
        raise
    except (SMBAuthenticationError, LogonFailure, SpnegoError) as error:
        raise LoginError(f"{name}: the SMB login is refused") from error
    except SharingViolation as error:
        raise SharingError(f"{name} is in use by something that allows no reading") from error
    except AccessDenied as error:
        raise AccessError(f"{name}: access is denied") from error
    except (ObjectNameNotFound, ObjectPathNotFound) as error:
        raise GoneError(f"{name} does not exist") from error
    except SMBResponseException as error:
        raise _by_status(name, error) from error
    except (SMBConnectionClosed, OSError) as error:
        raise FileUnreachableError(f"{name}: {error}") from error
    except (SMBException, ValueError, KeyError, TypeError) as error:
        # smbprotocol ends waits that were too long, and what it cannot parse, with these
        raise FileUnreachableError(f"{name}: {error}") from error


_BAD_NETWORK_NAME = 0xC00000CC
_DISK_FULL = frozenset({0xC000007F, 0xC0000044})  # or a quota of the account
_GONE_STATUSES = frozenset({0xC00000C9, 0xC0000203, 0xC000020C, 0xC000035C})  # name, session, link


def _by_status(name: str, error: SMBResponseException) -> HypervError:
    if error.status == _BAD_NETWORK_NAME:
        return GoneError(f"{name}: the host has no such share")
    if error.status in _DISK_FULL:
        return FullError(f"{name}: the volume has no room left")
    if error.status in _GONE_STATUSES:
        return FileUnreachableError(f"{name}: the SMB session ended (status {error.status:#010x})")
    return FileError(f"{name}: status {error.status:#010x}")
