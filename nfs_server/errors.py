"""The errors of this library; `code` is stable."""

from __future__ import annotations

from nfs_server.protocol import Status


class NfsServerError(Exception):
    """The NFS server failed; the message says why."""

    code = "nfs.error"


class XdrError(NfsServerError):
    """A request that is cut short, too long, or not what the procedure takes."""

    code = "nfs.garbage"


class RpcError(NfsServerError):
    """The client broke the record or message framing; its connection is closed."""

    code = "nfs.rpc"


class ListenError(NfsServerError):
    """The server cannot listen where it was told to; another one may be there already."""

    code = "nfs.listen"


class VfsError(NfsServerError):
    """What a tree raises to choose the status that the client gets."""

    code = "nfs.vfs"

    def __init__(self, status: Status, message: str = "") -> None:
        super().__init__(message or status.name)
        self.status = status
