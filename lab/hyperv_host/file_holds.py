"""How a running machine holds its disk files against the SMB clients of the host.

The host's own handles are opened over SMB, as Samba knows the share modes of its clients only: the
leaf is held against everybody, what lies below it against writers. A client that has a file open
keeps the host from taking it for itself, which is what makes a merge fail on a real host.

Invariants: a hold lives until it is released or the host ends. Thread model: any thread.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import Protocol

from smbprotocol.connection import Connection
from smbprotocol.exceptions import SharingViolation, SMBResponseException
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

from lab.hyperv_host.errors import HypervError, InUseError
from lab.hyperv_host.windows_path import WindowsPath

Release = Callable[[], None]


class FileHolds(Protocol):
    def hold(self, path: WindowsPath, *, alone: bool) -> Release:
        """Keep others from writing the file, or from opening it at all (`alone`).

        Raises:
            InUseError: another has it open in a way that excludes this.
        """
        ...


class NoHolds:
    """For a host whose files nobody shares."""

    def hold(self, path: WindowsPath, *, alone: bool) -> Release:
        return lambda: None


class SmbHolds:
    def __init__(self, port: int, user: str, password: str) -> None:
        self._lock = threading.Lock()
        self._connection = Connection(uuid.uuid4(), "127.0.0.1", port, require_signing=True)
        self._connection.connect()
        self._session = Session(self._connection, user, password, require_encryption=False)
        self._session.connect()
        self._trees: dict[str, TreeConnect] = {}

    def hold(self, path: WindowsPath, *, alone: bool) -> Release:
        with self._lock:
            handle = Open(self._tree(path.drive), "\\".join(path.parts))
            try:
                handle.create(
                    ImpersonationLevel.Impersonation,
                    FilePipePrinterAccessMask.GENERIC_READ,
                    FileAttributes.FILE_ATTRIBUTE_NORMAL,
                    0 if alone else ShareAccess.FILE_SHARE_READ,
                    CreateDisposition.FILE_OPEN,
                    CreateOptions.FILE_NON_DIRECTORY_FILE,
                )
            except SharingViolation as error:
                raise InUseError(
                    f"'{path}': The process cannot access the file because it is being used by"
                    " another process."
                ) from error
            except SMBResponseException as error:
                raise HypervError(f"cannot hold '{path}': {error}") from error
        return lambda: self._release(handle)

    def close(self) -> None:
        with self._lock:
            self._connection.disconnect(True)

    def _release(self, handle: Open) -> None:
        with self._lock:
            handle.close()

    def _tree(self, drive: str) -> TreeConnect:
        if drive not in self._trees:
            tree = TreeConnect(self._session, f"\\\\127.0.0.1\\{drive}$")
            tree.connect(require_secure_negotiate=False)
            self._trees[drive] = tree
        return self._trees[drive]
