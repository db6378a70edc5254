"""The server: listeners, what its connections share, and an orderly end.

Thread model: everything is called on one event loop. The worker pool belongs to the server and
is joined before `close` returns, so no backend is touched afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nbd_server.backend import Export, export_table
from nbd_server.connection import Connection
from nbd_server.errors import ListenError
from nbd_server.limits import Counters, Limits
from nbd_server.tls import TlsPolicy
from nbd_server.work_queue import Surroundings

log = logging.getLogger(__name__)

BACKLOG = 128


class Server:
    """Serves several exports by name, on any number of TCP and Unix sockets."""

    def __init__(
        self,
        exports: Sequence[Export],
        *,
        tls: TlsPolicy | None = None,
        limits: Limits | None = None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """`answered` is called on the loop whenever replies have left."""
        self._exports = export_table(exports)
        self._tls = tls
        self._limits = limits or Limits()
        self.counters = Counters()
        self._pool = ThreadPoolExecutor(self._limits.workers, thread_name_prefix="nbd")
        self._near_pool = ThreadPoolExecutor(
            self._limits.near_workers, thread_name_prefix="nbd-near"
        )
        self._shared = Surroundings(
            pool=self._pool,
            near_pool=self._near_pool,
            counters=self.counters,
            share_bytes=self._share_bytes,
            jobs=self._limits.jobs_per_connection,
            linger_s=self._limits.shutdown_s,
            answered=answered,
        )
        self._connections: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._socket_files: list[tuple[Path, int]] = []  # and the inode that is ours
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._closing = False

    async def listen_tcp(self, host: str, port: int = 0) -> int:
        """Return the port, which the system chooses for 0. Raises ListenError."""
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                self._accept, host, port, backlog=BACKLOG, reuse_address=True
            )
        except OSError as error:
            raise ListenError(f"{host} port {port}: {error.strerror or error}") from error
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    async def listen_unix(self, path: Path) -> None:
        """Make the socket with mode 0600; one left by a dead server is replaced.

        Raises:
            ListenError: a living server listens there, or the path is something else.
        """
        sock = _bind_unix(path)
        loop = asyncio.get_running_loop()
        self._socket_files.append((path, path.stat().st_ino))
        listener = await loop.create_unix_server(self._accept, sock=sock, backlog=BACKLOG)
        self._listeners.append(listener)

    async def close(self) -> None:
        """Stop listening, finish what clients asked for, join the workers. Idempotent.

        A client that does not take its replies within Limits.shutdown_s is cut off.
        """
        self._closing = True
        for listener in self._listeners:
            listener.close()
        self._remove_socket_files()
        for connection in list(self._connections):
            connection.drain()
        try:
            await asyncio.wait_for(self._all_gone.wait(), self._limits.shutdown_s)
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), 1.0)
        await asyncio.to_thread(self._near_pool.shutdown)  # it hands work over to the other
        await asyncio.to_thread(self._pool.shutdown)

    def _share_bytes(self) -> int:
        return self._limits.share_bytes(len(self._connections))

    def _accept(self) -> Connection:
        return Connection(
            self._exports,
            self._tls,
            self._limits,
            self._shared,
            opened=self._opened,
            on_lost=self._lost,
        )

    def _opened(self, connection: Connection) -> bool:
        """Whether a new connection may stay: one client leaves room to others."""
        client = connection.client
        of_client = sum(each.client == client for each in self._connections) if client else 0
        full = len(self._connections) >= self._limits.connections
        if self._closing or full or of_client >= self._limits.connections_per_client:
            self.counters.refused += 1
            log.warning("connection refused: %d are open", len(self._connections))
            return False
        self._connections.add(connection)
        self._all_gone.clear()
        self.counters.accepted += 1
        self.counters.connections = len(self._connections)
        return True

    def _lost(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self.counters.connections = len(self._connections)
        if not self._connections:
            self._all_gone.set()

    def _remove_socket_files(self) -> None:
        for path, inode in self._socket_files:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:  # not one that a later server put there
                    path.unlink()
        self._socket_files.clear()


def _bind_unix(path: Path) -> socket.socket:
    _remove_stale(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        os.fchmod(sock.fileno(), 0o600)  # bind(2) on Linux gives the file this mode
        sock.bind(str(path))
    except OSError as error:
        sock.close()
        raise ListenError(f"{path}: {error.strerror or error}") from error
    return sock


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ListenError(f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        refused = probe.connect_ex(str(path))
    if refused != errno.ECONNREFUSED:
        raise ListenError(f"{path}: another server listens there")
    path.unlink()
