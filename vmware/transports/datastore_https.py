"""The datastore HTTPS transport: the frozen flat base of a disk, read in byte ranges.

Data path: host or vCenter `/folder` -> `range_client` -> `read_window` -> the repository's reader.
Only the base `-flat.vmdk` below the first snapshot is open to this: it is not locked while the VM
runs, and it is raw, so that a byte of the file is a byte of the disk. Deltas, RDMs, vSAN and vVols
are refused before anything is moved.

Invariants: the descriptor is read bounded and names one flat extent in its own folder; the extent
measures exactly the disk's capacity, by HEAD and again in every answer.
Thread model: as of the contract.
Source: design notes section 4b.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyVmomi import vim

from vmware.datastore_path import DatastorePath
from vmware.datastores import datastores_of
from vmware.errors import FileFaultError, ProtocolError, VsphereError
from vmware.properties import fetch_one
from vmware.transports.contract import (
    Access,
    DiskRequest,
    ExtentKind,
    MappedExtent,
    Refusal,
    check_plan,
    check_range,
)
from vmware.transports.datastore_routes import HostRoute, Route, ServerRoute
from vmware.transports.range_client import RangeClient, RetryPolicy
from vmware.transports.read_plan import ReadPlan
from vmware.transports.read_window import ReadWindow
from vmware.vmdk_descriptor import MAX_DESCRIPTOR_BYTES, parse_descriptor

log = logging.getLogger(__name__)

_FLAT_BACKING = "VirtualDiskFlatVer2BackingInfo"
_FLAT_KINDS = ("VMFS", "FLAT")
_READABLE_DATASTORES = ("VMFS", "NFS", "NFS41")
_SECTOR_BYTES = 512
_PROBE = RetryPolicy(pauses_s=(0.2, 1.0), failures=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Sizes per disk that is being read; memory is `window_bytes` and little more."""

    connections: int = 4
    fetchers: int = 3  # of them, for what is planned
    piece_bytes: int = 16 << 20  # of one request over a route that keeps connections
    ticket_piece_bytes: int = 32 << 20  # of one that needs a ticket and a handshake each
    window_bytes: int = 128 << 20
    gap_bytes: int = 256 << 10  # unplanned bytes that are cheaper read than skipped
    small_bytes: int = 1 << 20  # of ranges that are not worth a ticket
    ticket_gap_bytes: int = 4 << 20  # where every request needs a ticket
    retry: RetryPolicy = field(default_factory=RetryPolicy)


class DatastoreHttpsReader:
    """A `DiskReader` over one flat file, with access in any order."""

    access = Access.ANY_ORDER

    def __init__(self, client: RangeClient, window: ReadWindow, size_bytes: int) -> None:
        self._client = client
        self._window = window
        self.size_bytes = size_bytes

    @property
    def route(self) -> str:
        """Through whom the bytes come now: the server, or `host NAME`."""
        return self._client.route.name

    def read_at(self, offset: int, length: int) -> bytes:
        check_range(offset, length, self.size_bytes)
        buffer = bytearray(length)
        self._window.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        check_range(offset, len(buffer), self.size_bytes)
        self._window.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        check_range(offset, length, self.size_bytes)
        return None if length else b""

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        check_range(offset, length, self.size_bytes)
        return [MappedExtent(offset, length, ExtentKind.DATA)] if length else []

    def close(self) -> None:
        self._client.close()
        self._window.close()


class DatastoreHttpsTransport:
    """Args: `direct`: also try the VM's host with tickets, before vCenter."""

    name = "datastore-https"

    def __init__(self, tuning: Tuning | None = None, *, direct: bool = True) -> None:
        self._tuning = tuning or Tuning()
        self._direct = direct

    def refusal(self, request: DiskRequest) -> Refusal | None:
        disk = request.disk
        if disk.backing_type != _FLAT_BACKING:
            return Refusal(
                code="transport.not-flat",
                text=f"{disk.label} is no flat file ({disk.backing_type or 'unknown backing'})",
                next_step="use another transport for this disk",
            )
        if disk.key_id:
            return Refusal(
                code="transport.encrypted-disk",
                text=f"{disk.label} is encrypted, and its file holds only ciphertext",
                next_step="use hot-add with an appliance that is encrypted too",
            )
        if len(disk.chain) > 1:
            return Refusal(
                code="transport.delta-disk",
                text=f"{disk.label} already had a snapshot before ours, so it is no flat file",
                next_step="remove older snapshots of the VM, or use another transport",
            )
        return None

    def open(self, request: DiskRequest) -> DatastoreHttpsReader:
        check_plan(request.planned or (), request.disk.capacity_bytes)
        descriptor = DatastorePath.parse(request.disk.file_name)
        self._check_datastore(request, descriptor.datastore)
        server = ServerRoute(request.session, request.vm.datacenter_path)
        flat = self._flat_file(request, descriptor, server)
        routes = self._working_routes(request, flat, server)
        return self._reader(request, flat, routes)

    # Is it what we need?

    def _check_datastore(self, request: DiskRequest, name: str) -> None:
        """vSAN and vVol objects have no flat file that `/folder` could show."""
        found = datastores_of(request.session, request.vm.moref)
        kind = next((datastore.kind for datastore in found if datastore.name == name), "")
        if kind not in _READABLE_DATASTORES:
            raise FileFaultError(
                f"datastore {name} is of kind {kind or 'unknown'}; its disks are no files to read"
            )

    def _flat_file(
        self, request: DiskRequest, descriptor: DatastorePath, server: Route
    ) -> DatastorePath:
        """The extent that the descriptor names. Raises VsphereError: not one flat extent."""
        parsed = parse_descriptor(_read_small(descriptor, server))
        capacity_bytes = request.disk.capacity_bytes
        if len(parsed.extents) != 1 or parsed.extents[0].kind not in _FLAT_KINDS:
            raise FileFaultError(f"{descriptor} is no flat disk ({parsed.create_type})")
        extent = parsed.extents[0]
        if extent.file_name is None or extent.start_sector or parsed.parent_cid != 0xFFFFFFFF:
            raise FileFaultError(f"{descriptor} is no flat disk by itself")
        if extent.size_bytes != capacity_bytes:
            raise FileFaultError(
                f"{descriptor} describes {extent.size_bytes} bytes, the disk has {capacity_bytes}"
            )
        return descriptor.sibling(extent.file_name)

    # By which way?

    def _working_routes(
        self, request: DiskRequest, flat: DatastorePath, server: ServerRoute
    ) -> list[Route]:
        """Those that handed out the first sector, best first. Raises VsphereError: none did."""
        size_bytes = request.disk.capacity_bytes
        found_bytes = _file_bytes(flat, server)
        if found_bytes != size_bytes:
            raise FileFaultError(f"{flat} has {found_bytes} bytes, the disk has {size_bytes}")
        working: list[Route] = []
        if self._direct and request.session.is_vcenter:
            try:
                host = _host_route(request)
                _probe(flat, size_bytes, host)
                working.append(host)
            except VsphereError as error:
                log.info("%s is not read from its host directly: %s", flat, error)
        try:
            _probe(flat, size_bytes, server)
            working.append(server)
        except VsphereError as error:
            if not working:
                raise
            log.info("%s is not read through %s: %s", flat, server.name, error)
        return working

    def _reader(
        self, request: DiskRequest, flat: DatastorePath, routes: Sequence[Route]
    ) -> DatastoreHttpsReader:
        tuning, size_bytes = self._tuning, request.disk.capacity_bytes
        kept = [route.keeps_connections for route in routes]
        plan = ReadPlan(
            request.planned,
            size_bytes,
            piece_bytes=tuning.piece_bytes if kept[0] else tuning.ticket_piece_bytes,
            gap_bytes=tuning.gap_bytes if any(kept) else tuning.ticket_gap_bytes,
        )
        client = RangeClient(
            flat,
            size_bytes,
            routes,
            connections=tuning.connections,
            retry=tuning.retry,
            small_bytes=tuning.small_bytes,
        )
        window = ReadWindow(
            plan, client.fetch, window_bytes=tuning.window_bytes, threads=tuning.fetchers
        )
        log.info("%s is read through %s", flat, routes[0].name)
        return DatastoreHttpsReader(client, window, size_bytes)


def _host_route(request: DiskRequest) -> HostRoute:
    """To the host that runs the VM: it has the datastore. Raises VsphereError."""
    session = request.session
    host = session.object(vim.HostSystem, request.vm.host_moref)
    paths = ["summary.config.name", "summary.config.port"]
    values = fetch_one(session, "look at the VM's host", host, paths).values
    address, port = values.get("summary.config.name"), values.get("summary.config.port")
    if not isinstance(address, str) or not address:
        raise ProtocolError("the VM's host has no name")
    return HostRoute(session, address, port if isinstance(port, int) and port > 0 else 443)


def _read_small(file: DatastorePath, route: Route) -> bytes:
    """A descriptor, whose size is looked at first: some servers stream the whole disk for it."""
    size_bytes = _file_bytes(file, route)
    if not 0 < size_bytes <= MAX_DESCRIPTOR_BYTES:
        raise FileFaultError(f"{file} has {size_bytes} bytes: no descriptor")
    data = bytearray(size_bytes)
    _fetch_once(file, size_bytes, route, memoryview(data))
    return bytes(data)


def _probe(file: DatastorePath, size_bytes: int, route: Route) -> None:
    """Read the first sector: a file that its VM has locked fails here. Raises VsphereError."""
    _fetch_once(file, size_bytes, route, memoryview(bytearray(min(_SECTOR_BYTES, size_bytes))))


def _fetch_once(file: DatastorePath, size_bytes: int, route: Route, buffer: memoryview) -> None:
    client = RangeClient(file, size_bytes, [route], connections=1, retry=_PROBE)
    try:
        client.fetch(0, buffer, lambda _count: None)
    finally:
        client.close()


def _file_bytes(file: DatastorePath, route: Route) -> int:
    client = RangeClient(file, 0, [route], connections=1, retry=_PROBE)
    try:
        return client.size_bytes()
    finally:
        client.close()
