"""Disk files of a Hyper-V host, read over SMB 3: pipelined, and signed or encrypted.

Data path: `vhdx` readers ask an `SmbFile` (structurally a `vhdx.source.BatchSource`) -> `smb_reads`
-> the host's admin share, or a share made for it. smbprotocol logs in, opens and closes; what is
read goes past it. One `SmbConnection` per disk: its files share a TCP connection, and disks do not
wait for each other. `smb_writing` opens files for a restore.

Invariants: files are opened here for reading only, and others may go on doing what they like with
them (share read, write, delete), so that a VM is never in our way nor we in its; every handle is
closed when `close` returns, which is what the merge of a checkpoint waits for. Every message is
signed or encrypted. Waiting for the host is bounded.

Thread model: any thread; opening and closing take turns, reads go on together.
Source: smbprotocol 1.17.
"""

from __future__ import annotations

import threading
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
    UnprotectedError,
)
from hyperv.smb_messages import CREDIT_BYTES, cost
from hyperv.smb_reads import (
    ANSWER_TIMEOUT_S,
    READ_BYTES,
    WANTED_CREDITS,
    ReadRefusedError,
    ReadTarget,
    SmbReads,
)
from hyperv.windows_path import SharedPath

PORT: Final = 445
CONNECT_TIMEOUT_S: Final = 20
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
        with _translated(f"{login.address}:{login.port}"):
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
                self._reads = SmbReads(self._connection, self._session)
                self._connection.echo(
                    self._session.session_id,
                    timeout=CONNECT_TIMEOUT_S,
                    credit_request=WANTED_CREDITS,
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
        with self._lock, _translated(name):
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

    @property
    def write_bytes(self) -> int:
        """The most that one write moves."""
        if not self._connection.supports_multi_credit:
            return CREDIT_BYTES
        return min(READ_BYTES, int(self._connection.max_write_size))

    def begin(self, handle: Open, name: str, message: Any, moved_bytes: int) -> Any | None:
        """Send a message of smbprotocol without waiting for its answer; None: the host has granted
        no credits for it, so answers to others have to be taken first. Raises: as `open_file`."""
        with self._lock, _translated(name):
            window = self._connection.sequence_window
            if window["high"] - window["low"] < cost(moved_bytes):
                return None
            return self._connection.send(
                message,
                sid=self._session.session_id,
                tid=handle.tree_connect.tree_connect_id,
                credit_request=cost(moved_bytes),  # as many as it uses up
            )

    def end(self, name: str, request: Any) -> bytes:
        """Wait for the answer. Raises: as `open_file`, FullError."""
        with _translated(name):
            answer = self._connection.receive(request, timeout=ANSWER_TIMEOUT_S)
            return bytes(answer["data"].get_value())

    def read(self, handle: Open, name: str, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """Fill the buffers from ranges that lie inside the file."""
        tree = handle.tree_connect
        target = ReadTarget(
            tree_id=int(tree.tree_connect_id),
            file_id=bytes(handle.file_id),
            is_sealed=bool(self._session.encrypt_data or tree.encrypt_data),
            is_dfs=bool(tree.is_dfs_share),
        )
        with _translated(name):
            self._reads.fill(target, wanted)

    def close(self) -> None:
        """Close every handle and the connection; idempotent, never raises."""
        with self._lock:
            for file in self._files:
                file.close()
            self._files.clear()
            self._drop()

    # Under the lock

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
        buffers = [
            bytearray(max(min(length, self._size_bytes - offset), 0)) for offset, length in ranges
        ]
        self.read_many_into(
            [(offset, memoryview(each)) for (offset, _), each in zip(ranges, buffers, strict=True)]
        )
        return [bytes(each) for each in buffers]

    def read_many_into(self, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """Fill every buffer (writable, bytes) from its offset; all of it lies inside the file.

        Raises: as `SmbConnection.open_file`; then the buffers hold anything.
        """
        if self._is_closed:
            raise FileError(f"{self.name} was closed while it was read")
        self._connection.read(self._handle, self.name, wanted)

    def close(self) -> None:
        """Idempotent, never raises: a handle that cannot be closed ends with the connection."""
        if self._is_closed:
            return
        self._is_closed = True
        with suppress(SMBException, OSError):
            self._handle.close()


@contextmanager
def _translated(name: str) -> Iterator[None]:
    try:
        yield
    except UnprotectedError as error:
        raise UnprotectedError(f"{name}: {error}") from error
    except HypervError:
        raise
    except ReadRefusedError as error:
        if not error.status:
            text = f"{name}: a read of {error.asked} bytes gave {error.length}"
            raise FileError(text) from error
        raise _by_status(name, error.status) from error
    except (SMBAuthenticationError, LogonFailure, SpnegoError) as error:
        raise LoginError(f"{name}: the SMB login is refused") from error
    except SharingViolation as error:
        raise SharingError(f"{name} is in use by something that allows no reading") from error
    except AccessDenied as error:
        raise AccessError(f"{name}: access is denied") from error
    except (ObjectNameNotFound, ObjectPathNotFound) as error:
        raise GoneError(f"{name} does not exist") from error
    except SMBResponseException as error:
        raise _by_status(name, error.status) from error
    except (SMBConnectionClosed, OSError) as error:
        raise FileUnreachableError(f"{name}: {error}") from error
    except (SMBException, ValueError, KeyError, TypeError) as error:
        # smbprotocol ends waits that were too long, and what it cannot parse, with these
        raise FileUnreachableError(f"{name}: {error}") from error


_BAD_NETWORK_NAME = 0xC00000CC
_DISK_FULL = frozenset({0xC000007F, 0xC0000044})  # or a quota of the account
_GONE_STATUSES = frozenset({0xC00000C9, 0xC0000203, 0xC000020C, 0xC000035C})  # name, session, link


def _by_status(name: str, status: int) -> HypervError:
    if status == _BAD_NETWORK_NAME:
        return GoneError(f"{name}: the host has no such share")
    if status in _DISK_FULL:
        return FullError(f"{name}: the volume has no room left")
    if status in _GONE_STATUSES:
        return FileUnreachableError(f"{name}: the SMB session ended (status {status:#010x})")
    return FileError(f"{name}: status {status:#010x}")
