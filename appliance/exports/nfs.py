"""Trees served over NFSv3: an `nfs_server` on a thread of its own, with portmap where it is due.

ESXi asks port 111 and nothing else, so AUTO registers with the rpcbind of this machine where one
answers and answers there itself otherwise. An rpcbind that is started again has forgotten us, so a
thread looks now and then whether it knows us still. Trees stay the caller's: they are neither
closed here nor touched after `stop` or `withdraw` has returned.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from appliance.base.atomic import create_once
from appliance.base.errors import StorageError, UsageError
from appliance.base.periodic_task import PeriodicTask
from appliance.exports.loop_thread import LoopThread
from appliance.exports.wakefulness import Wakefulness
from nfs_server import portmap
from nfs_server.errors import ListenError, NfsServerError
from nfs_server.exports import Export, networks
from nfs_server.handles import KEY_BYTES
from nfs_server.limits import Counters, Limits
from nfs_server.protocol import NFS_PORT, PORTMAP_PORT
from nfs_server.server import Server, service_mappings
from nfs_server.vfs import Tree

CHECK_REGISTRATION_S = 15.0


class PortmapMode(StrEnum):
    AUTO = "auto"  # register where a portmapper answers, else own port 111
    REGISTER = "register"
    OWN = "own"
    NONE = "none"  # clients are told the port; ESXi cannot be


def handle_key(path: Path) -> bytes:
    """The key of this appliance's file handles, made at first use. Raises StorageError."""
    try:
        create_once(path, secrets.token_bytes(KEY_BYTES))
        key = path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise StorageError(f"{path} is no key of file handles: {len(key)} bytes")
    return key


def nfs_export(path: str, tree_id: int, tree: Tree, clients: Sequence[str]) -> Export:
    """Raises UsageError naming what is wrong."""
    try:
        return Export(path=path, tree_id=tree_id, tree=tree, clients=networks(clients))
    except ValueError as error:
        raise UsageError(f"cannot serve {path}: {error}") from error


class NfsServer:
    """Serves exports from `start` to `stop`; a context manager for both."""

    def __init__(
        self,
        *,
        key: bytes,
        host: str,
        port: int = NFS_PORT,
        portmap_mode: PortmapMode = PortmapMode.AUTO,
        portmap_port: int = PORTMAP_PORT,
        limits: Limits | None = None,
        check_registration_s: float = CHECK_REGISTRATION_S,
    ) -> None:
        """`port` 0: a free one."""
        self._host = host
        self._wanted_port = port
        self._mode = portmap_mode
        self.portmap_port = portmap_port  # 0: a free one, when it is our own
        self._server = Server([], key=key, limits=limits, answered=Wakefulness().answered)
        self._loop: LoopThread | None = None
        self._check_registration_s = check_registration_s
        self._registrar: PeriodicTask | None = None
        self.port = 0

    def __enter__(self) -> NfsServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The one address that it is bound to; "": it listens on all, or on those of a name."""
        try:
            bound = ipaddress.ip_address(self._host)
        except ValueError:
            return ""
        return "" if bound.is_unspecified else str(bound)

    @property
    def counters(self) -> Counters:
        return self._server.counters

    @property
    def exports(self) -> tuple[Export, ...]:
        return self._server.exports

    def start(self) -> None:
        """Return once clients can connect. Raises StorageError: nothing listens then."""
        self._loop = LoopThread("nfs-server")
        try:
            self.port = self._loop.call(self._server.listen(self._host, self._wanted_port))
            self._start_portmap(self._loop)
        except BaseException as error:
            self.stop()
            if isinstance(error, ListenError):
                raise StorageError(f"cannot serve NFS: {error}") from error
            raise

    def stop(self) -> None:
        """Finish outstanding calls, close all connections, join every thread. Idempotent."""
        if self._loop is None:
            return
        if self._registrar is not None:
            self._registrar.stop()
            self._registrar = None
            with suppress(NfsServerError):  # rpcbind is gone, and what it knew with it
                portmap.unregister(service_mappings(self.port), port=self.portmap_port)
        self._loop.call(self._server.close())
        self._loop.stop()
        self._loop = None

    def publish(self, export: Export) -> None:
        """Serve it from now on. Raises UsageError for a path or id that is taken."""
        try:
            self._server.replace_exports([*self._server.exports, export])
        except ValueError as error:
            raise UsageError(f"cannot serve {export.path}: {error}") from error

    def withdraw(self, path: str) -> None:
        """Serve it no more: its handles are stale. Unmount it everywhere first. Idempotent.

        On return no call touches its tree any longer, so the tree may be closed.
        """
        for export in self._server.exports:
            if export.path != path:
                continue
            if self._loop is not None:
                self._loop.call(self._server.withdraw(export.tree_id))
            else:
                rest = [each for each in self._server.exports if each is not export]
                self._server.replace_exports(rest)

    def _start_portmap(self, loop: LoopThread) -> None:
        mode = self._mode
        if mode is PortmapMode.AUTO:
            found = portmap.answers(port=self.portmap_port)
            mode = PortmapMode.REGISTER if found else PortmapMode.OWN
        if mode is PortmapMode.REGISTER:
            portmap.register(service_mappings(self.port), port=self.portmap_port)
            self._registrar = PeriodicTask(
                "nfs-registrar", self._keep_registered, every_s=self._check_registration_s
            )
            self._registrar.start()
        elif mode is PortmapMode.OWN:
            port = self.portmap_port
            self.portmap_port = loop.call(self._server.listen_portmap(self._host, port))

    def _keep_registered(self) -> None:
        mappings = service_mappings(self.port)
        with suppress(NfsServerError):  # it is being started again; the next look will tell
            if not portmap.is_registered(mappings, port=self.portmap_port):
                portmap.register(mappings, port=self.portmap_port)
