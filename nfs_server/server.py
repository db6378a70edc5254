"""The server: listeners, worker pools, what its connections share, and an orderly end.

Thread model: everything is called on one event loop but `replace_exports`, which any thread may
call. The pools belong to the server and are joined before `close` returns, so no tree is touched
afterwards. Order at the end of a session: the datastore is unmounted first, then the export goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hmac
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, cast

from nfs_server import rpc
from nfs_server.connection import Connection, Shared
from nfs_server.errors import ListenError, RpcError
from nfs_server.exports import Export, ExportTable
from nfs_server.handles import HandleCodec
from nfs_server.in_flight import InFlight
from nfs_server.limits import STRANGERS, Counters, Limits
from nfs_server.nfs3 import Lane
from nfs_server.portmap import TCP, UDP, Mapping, Portmap
from nfs_server.programs import Programs
from nfs_server.protocol import (
    MOUNT_PROGRAM,
    MOUNT_VERSION,
    NFS_PROGRAM,
    NFS_VERSION,
    PORTMAP_PORT,
    PORTMAP_PROGRAM,
    PORTMAP_VERSION,
    VERIFIER_BYTES,
)
from nfs_server.replay_cache import ReplayCache
from nfs_server.request import Request, Surroundings
from nfs_server.xdr import Decoder

log = logging.getLogger(__name__)

BACKLOG = 128
_DATAGRAM_BYTES_MAX = 1024


class Server:
    """Serves trees over NFSv3 and MOUNT on one port each way it is told to listen."""

    def __init__(
        self,
        exports: Sequence[Export],
        *,
        key: bytes,
        limits: Limits | None = None,
        answered: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            key: 32 secret bytes; handles are good as long as the key is the same.
            answered: called on the loop whenever replies have left.

        Raises:
            ValueError: two exports share a path or tree id, or the key has another length.
        """
        self._table = ExportTable(exports)
        self._limits = limits or Limits()
        self._portmap = Portmap()
        self.counters = Counters()
        self._pools: dict[Lane, Executor] = {
            Lane.METADATA: ThreadPoolExecutor(self._limits.metadata_workers, "nfs-metadata"),
            Lane.DATA: ThreadPoolExecutor(self._limits.data_workers, "nfs-data"),
        }
        self._requests = Surroundings(
            exports=lambda: self._table,
            handles=HandleCodec(key),
            verifier=hmac.digest(key, b"write verifier", "sha256")[:VERIFIER_BYTES],
            transfer_bytes_max=self._limits.transfer_bytes,
        )
        self._shared = Shared(
            requests=self._requests,
            pools=self._pools,
            limits=self._limits,
            counters=self.counters,
            replays=ReplayCache(),
            in_flight=InFlight(),
            answered=answered,
            opened=self._opened,
            changed=self._changed,
        )
        self._connections: dict[Connection, None] = {}  # oldest first
        self._lost_busy: set[Connection] = set()
        self._listeners: list[asyncio.Server] = []
        self._datagrams: list[asyncio.DatagramTransport] = []
        self._all_gone = asyncio.Event()
        self._all_gone.set()
        self._closing = False

    @property
    def exports(self) -> tuple[Export, ...]:
        return self._table.exports

    def replace_exports(self, exports: Sequence[Export]) -> None:
        """Serve these from now on; calls that are running finish on what they began with.

        Raises ValueError as the constructor does.
        """
        self._table = ExportTable(exports)

    async def withdraw(self, tree_id: int) -> None:
        """Serve this tree no more; return when no call touches it any longer. Idempotent.

        Its handles are stale from now on. Waits for as long as the tree's own calls take.
        """
        rest = [export for export in self._table.exports if export.tree_id != tree_id]
        self.replace_exports(rest)
        await self._shared.in_flight.ended(tree_id)

    async def listen(self, host: str, port: int = 0) -> int:
        """Serve NFS and MOUNT; return the port, which the system chooses for 0.

        Raises: ListenError.
        """
        numbers = frozenset({NFS_PROGRAM, MOUNT_PROGRAM})
        bound = await self._listen_tcp(host, port, numbers)
        self._portmap.mappings = (*self._portmap.mappings, *service_mappings(bound))
        return bound

    async def listen_portmap(self, host: str, port: int = PORTMAP_PORT) -> int:
        """Serve portmap over TCP and UDP on the same port. Raises ListenError."""
        bound = await self._listen_tcp(host, port, frozenset({PORTMAP_PROGRAM}))
        own = [
            Mapping(PORTMAP_PROGRAM, PORTMAP_VERSION, protocol, bound) for protocol in (TCP, UDP)
        ]
        self._portmap.mappings = (*own, *self._portmap.mappings)
        loop = asyncio.get_running_loop()
        programs = Programs(numbers=frozenset({PORTMAP_PROGRAM}), portmap=self._portmap)
        try:
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Datagrams(programs, self._requests), local_addr=(host, bound)
            )
        except OSError as error:
            raise _listen_error(host, bound, error) from error
        self._datagrams.append(transport)
        return bound

    async def close(self) -> None:
        """Stop listening, finish what clients asked for, join the workers. Idempotent.

        A client that does not take its replies within Limits.shutdown_s is cut off.
        """
        self._closing = True
        for listener in self._listeners:
            listener.close()
        for datagrams in self._datagrams:
            datagrams.close()
        for connection in list(self._connections):
            connection.drain()
        try:
            await asyncio.wait_for(self._all_gone.wait(), self._limits.shutdown_s)
        except TimeoutError:
            for connection in list(self._connections):
                connection.abort()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_gone.wait(), 1.0)
        for pool in self._pools.values():
            await asyncio.to_thread(pool.shutdown)

    async def _listen_tcp(self, host: str, port: int, numbers: frozenset[int]) -> int:
        programs = Programs(numbers=numbers, portmap=self._portmap)
        loop = asyncio.get_running_loop()
        try:
            listener = await loop.create_server(
                lambda: Connection(programs, self._shared),
                host,
                port,
                backlog=BACKLOG,
                reuse_address=True,
            )
        except OSError as error:
            raise _listen_error(host, port, error) from error
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def _opened(self, connection: Connection) -> bool:
        """Whether a new connection may stay. A stranger's may cost an older stranger's."""
        client = connection.client
        of_client = sum(each.client == client for each in self._connections)
        full = len(self._connections) >= self._limits.connections
        if self._closing or full or of_client >= self._limits.connections_per_client:
            self.counters.refused += 1
            log.warning("connection of %s refused: %d are open", client, len(self._connections))
            return False
        if not self._admits(client):
            strangers = [
                each
                for each in self._connections
                if not each.closing and not self._admits(each.client)
            ]
            for stranger in strangers[: max(0, len(strangers) - STRANGERS + 1)]:
                self.counters.refused += 1
                stranger.abort()
        self._connections[connection] = None
        self._all_gone.clear()
        self.counters.accepted += 1
        self._count_connections()
        return True

    def _admits(self, client: str) -> bool:
        return any(export.admits(client) for export in self._table.exports)

    def _count_connections(self) -> None:
        self.counters.connections = len(self._connections)
        self._shared.share_bytes = self._limits.share_bytes(len(self._connections))

    def _changed(self, connection: Connection) -> None:
        """A connection was lost, or a lost one has finished a batch."""
        self._connections.pop(connection, None)
        self._count_connections()
        if connection.busy:
            self._lost_busy.add(connection)
        else:
            self._lost_busy.discard(connection)
        if not self._connections and not self._lost_busy:
            self._all_gone.set()
        before = self._shared.busy_clients
        self._shared.busy_clients = frozenset(
            each.client for each in self._lost_busy if each.changing
        )
        for other in list(self._connections):
            if other.client in before - self._shared.busy_clients:
                other.process()


class _Datagrams(asyncio.DatagramProtocol):
    """Portmap over UDP: a call in a datagram, its reply in another."""

    def __init__(self, programs: Programs, requests: Surroundings) -> None:
        self._programs = programs
        self._requests = requests

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: Any) -> None:
        if len(data) > _DATAGRAM_BYTES_MAX:
            return
        with contextlib.suppress(RpcError):  # there is nobody to answer
            call = rpc.parse_call(memoryview(data))
            if isinstance(call, rpc.Rejected):
                reply = call.reply
            else:
                words = Decoder(call.arguments)
                request = Request(self._requests, str(address[0]), call.uid, call.gid, words)
                reply = cast(list[Any], self._programs.find(call, request))
            self._transport.sendto(b"".join(reply)[4:], address)  # without the record mark


def service_mappings(port: int) -> tuple[Mapping, ...]:
    """What a portmapper is to say of a server whose NFS and MOUNT are on `port`."""
    return (
        Mapping(NFS_PROGRAM, NFS_VERSION, TCP, port),
        Mapping(MOUNT_PROGRAM, MOUNT_VERSION, TCP, port),
    )


def _listen_error(host: str, port: int, error: OSError) -> ListenError:
    reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return ListenError(f"{host} port {port}: {reason}")
