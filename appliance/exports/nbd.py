"""Disks served over NBD: the adapter between the block-device contract and `nbd_server`.

`NbdServer` runs the server on an event loop (uvloop) in a thread of its own, so that synchronous
code (a job, the command line) can start it, hand its URIs to others and stop it. The disks stay
the caller's: they are neither closed here nor touched after `stop` has returned.

Errors of ours become error numbers of the protocol in one place, `_translate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast
from urllib.parse import quote

from appliance.base.errors import (
    ApplianceError,
    OutOfRangeError,
    StorageError,
    StorageFullError,
    UsageError,
)
from appliance.blocks.device import BlockDevice, BlockReader, NearReader
from appliance.blocks.extents import ExtentKind
from appliance.exports.loop_thread import LoopThread
from appliance.exports.wakefulness import Wakefulness
from nbd_server.backend import Export
from nbd_server.errors import BackendError, ListenError, NbdServerError
from nbd_server.limits import Counters, Limits
from nbd_server.protocol import NbdErrno
from nbd_server.server import Server
from nbd_server.tls import TlsPolicy, server_context

_PREFERRED_BLOCK_BYTES = 4096  # what guest file systems use


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdExport:
    """`disk` must be a BlockDevice unless `read_only`."""

    name: str
    disk: BlockReader | BlockDevice
    read_only: bool = True
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpAddress:
    host: str = "127.0.0.1"
    port: int = 0  # 0: a free one


@dataclass(frozen=True, slots=True, kw_only=True)
class NbdTls:
    """`directory` holds server-cert.pem, server-key.pem and ca-cert.pem to verify clients."""

    directory: Path
    verify_clients: bool = True


class DiskBackend:
    """A disk of ours as `nbd_server` wants it; see its backend contract."""

    fast_zero = True  # BlockDevice.zero_at is cheap for any length
    preferred_block_bytes = _PREFERRED_BLOCK_BYTES

    def __init__(self, disk: BlockReader | BlockDevice, *, read_only: bool) -> None:
        self._reader: BlockReader = disk
        self._device = cast(BlockDevice, disk)  # the server refuses writes when read-only
        self.size_bytes = disk.size_bytes
        self.read_only = read_only
        self._near = disk.read_near_many if isinstance(disk, NearReader) else None
        self.reads_near = self._near is not None
        self.try_read = disk.try_read_at  # as it is: one call less on the hot path

    def read(self, offset: int, length: int) -> bytes | memoryview:
        try:
            return self._reader.read_at(offset, length)
        except ApplianceError as error:
            raise _translate(error) from error

    def read_near(self, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes | memoryview | None]:
        return [None] * len(ranges) if self._near is None else self._near(ranges)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        try:
            self._device.write_at(offset, data)
        except ApplianceError as error:
            raise _translate(error) from error

    def zero(self, offset: int, length: int, *, allocate: bool) -> None:
        """A copy-on-write disk appends, so space cannot be kept for later writes: no allocation."""
        try:
            self._device.zero_at(offset, length)
        except ApplianceError as error:
            raise _translate(error) from error

    def trim(self, offset: int, length: int) -> None:
        """Zeros, where that takes no space that is not there: a part of a block may take some."""
        try:
            self._device.zero_at(offset, length)
        except StorageFullError:
            block = self.preferred_block_bytes
            start, end = -(-offset // block) * block, (offset + length) // block * block
            if start < end:
                self.zero(start, end - start, allocate=False)
        except ApplianceError as error:
            raise _translate(error) from error

    def flush(self) -> None:
        try:
            self._device.flush()
        except ApplianceError as error:
            raise _translate(error) from error

    def extents(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        try:
            mapped = self._reader.map_extents(offset, length)
        except ApplianceError as error:
            raise _translate(error) from error
        return [(extent.length, extent.kind is ExtentKind.ZERO) for extent in mapped]


class NbdServer:
    """Serves disks from `start` to `stop`; a context manager for both."""

    def __init__(
        self,
        exports: Sequence[NbdExport],
        *,
        address: TcpAddress | Path,
        tls: NbdTls | None = None,
        limits: Limits | None = None,
    ) -> None:
        """`address`: TCP, or the path of a Unix socket to be made with mode 0600."""
        self._exports = list(exports)
        self._address = address
        self._tls = tls
        self._limits = limits
        self._counters = Counters()
        self._port = 0
        self._loop: LoopThread | None = None
        self._server: Server | None = None

    def __enter__(self) -> NbdServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """Of a TCP address, once started."""
        return self._port

    @property
    def counters(self) -> Counters:
        """Connections, requests and bytes so far; also after `stop`."""
        return self._counters

    def uri(self, name: str) -> str:
        """What nbdinfo, qemu and others take. Raises UsageError for a name that is not served."""
        if name not in [export.name for export in self._exports]:
            raise UsageError(f"no export is named {name!r}")
        scheme = "nbds" if self._tls else "nbd"
        if isinstance(self._address, Path):
            return f"{scheme}+unix:///{quote(name, safe='')}?socket={quote(str(self._address))}"
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        return f"{scheme}://{host}:{self._port}/{quote(name, safe='')}"

    def start(self) -> None:
        """Return once clients can connect.

        Raises:
            UsageError: the exports or the certificates cannot be used.
            StorageError: nothing can listen at the address.
        """
        if self._loop is not None:
            raise UsageError("the NBD server was started already")
        tls = self._tls_policy()
        self._loop = LoopThread("nbd-server")
        try:
            self._loop.call(self._open(self._server_exports(), tls))
        except BaseException as error:
            self.stop()
            if isinstance(error, ListenError):
                raise StorageError(f"cannot listen: {error}") from error
            if isinstance(error, ValueError):
                raise UsageError(f"cannot serve: {error}") from error
            raise

    def stop(self) -> None:
        """Finish outstanding requests, close all connections, join every thread. Idempotent."""
        if self._loop is None:
            return
        if self._server is not None:
            self._loop.call(self._server.close())
            self._server = None
        self._loop.stop()

    def _server_exports(self) -> list[Export]:
        return [
            Export(
                name=export.name,
                backend=DiskBackend(export.disk, read_only=export.read_only),
                description=export.description,
            )
            for export in self._exports
        ]

    def _tls_policy(self) -> TlsPolicy | None:
        if self._tls is None:
            return None
        try:
            context = server_context(self._tls.directory, verify_clients=self._tls.verify_clients)
        except NbdServerError as error:
            raise UsageError(str(error)) from error
        return TlsPolicy(context=context)

    async def _open(self, exports: list[Export], tls: TlsPolicy | None) -> None:
        self._server = server = Server(
            exports, tls=tls, limits=self._limits, answered=Wakefulness().answered
        )
        self._counters = server.counters
        await self._listen(server)

    async def _listen(self, server: Server) -> None:
        if isinstance(self._address, Path):
            await server.listen_unix(self._address)
        else:
            self._port = await server.listen_tcp(self._address.host, self._address.port)


def _translate(error: ApplianceError) -> BackendError:
    if isinstance(error, StorageFullError):
        return BackendError(NbdErrno.ENOSPC, str(error))
    if isinstance(error, OutOfRangeError):
        return BackendError(NbdErrno.EINVAL, str(error))
    return BackendError(NbdErrno.EIO, str(error))
