"""The errors of this library; `code` is stable."""

from __future__ import annotations

from nbd_server.protocol import NbdErrno


class NbdServerError(Exception):
    """The NBD server failed; the message says why."""

    code = "nbd.error"


class ProtocolError(NbdServerError):
    """The client broke the protocol beyond repair; its connection is closed."""

    code = "nbd.protocol"


class ListenError(NbdServerError):
    """The server cannot listen where it was told to; another one may be there already."""

    code = "nbd.listen"


class TlsConfigError(NbdServerError):
    """The certificates cannot be used; the message names the file."""

    code = "nbd.tls-config"


class BackendError(NbdServerError):
    """What a backend raises to choose the error that the client gets."""

    code = "nbd.backend"

    def __init__(self, errno: NbdErrno, message: str) -> None:
        super().__init__(message)
        self.errno = errno
