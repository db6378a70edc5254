"""The disks of a vSphere snapshot as frozen disks: their numbers, change lists and readers.

A disk keeps its number from point to point: it is known by its backing's uuid, else by its place
on the controllers. What differs from the earlier state, or cannot be asked, becomes a reason, and
the disk is read whole.

Thread model: pure functions, and `DiskOpener`, which any thread may call.
Source: design notes section 2 (guards), `vmware.changed_blocks`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pyVmomi import vim

from appliance.base.reasons import Reason
from appliance.base.run_context import CancelToken
from appliance.blocks.extents import Extent, ExtentKind, MappedExtent
from appliance.sources.changes import OTHER_VM, Changes, is_mistrusted
from appliance.sources.contract import DiskNotCoverableError
from appliance.sources.disk_numbers import PlacedDisk, disk_numbers
from appliance.sources.frozen import Access, DiskIdentity, KnownDisk, KnownState, TransferReport
from appliance.sources.reopening_reader import OpenTransport
from appliance.sources.vsphere_reasons import reason, vsphere_calls
from vmware import changed_blocks
from vmware.changed_blocks import Baseline, FullRead
from vmware.disks import DiskInfo, disks_of
from vmware.errors import ObjectGoneError, UnreachableError
from vmware.inventory import VmInfo
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.transports import contract as transports
from vmware.transports.choice import NoTransportError, choose

MISTRUSTED = Reason(
    "cbt.mistrusted",
    "the change list of this disk failed an audit, so it is not asked until its tracking is reset",
    "none: the tracking is reset as soon as the VM has no snapshots",
)
MOVED = Reason(
    "cbt.disk-moved",
    "the disk hangs on another controller place than in the parent point",
    "none: the next backup reads changed blocks again",
    warning=False,
)


def identity_of_disk(disk: DiskInfo) -> DiskIdentity:
    return DiskIdentity(
        uuid=disk.backing_uuid, place=disk.address, change_id=disk.change_id or None
    )


def numbers(disks: Sequence[DiskInfo], known: KnownState | None) -> Mapping[int, int]:
    """Return device key -> disk number (`disk_numbers`)."""
    ordered = sorted(disks, key=_order)
    places = [PlacedDisk(uuid=disk.backing_uuid, place=disk.address) for disk in ordered]
    found = disk_numbers(places, known)
    return {disk.key: number for disk, number in zip(ordered, found, strict=True)}


def _order(disk: DiskInfo) -> tuple[str, int, int, int]:
    return disk.controller_family, disk.bus_number, disk.unit_number, disk.key


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenAt:
    """Where the frozen disks of a run are to be found."""

    session: Session
    vm: VmInfo
    snapshot_moref: str
    instance: str


def changes_since(
    at: FrozenAt, disk: DiskInfo, number: int, known: KnownState | None, patience: Patience
) -> Changes:
    """Ask what changed since `known`, if every guard allows it.

    Raises: VsphereError: the snapshot is gone, or the server does not answer.
    """
    old = known.disk(number) if known else None
    if known is None or old is None:
        return Changes(extents=None)
    doubt = OTHER_VM if known.instance != at.instance else _doubt(disk, old)
    if doubt is not None:
        return Changes(extents=None, reasons=(doubt,))
    assert old.identity is not None
    base = Baseline(
        change_id=old.change_id,
        capacity_bytes=old.size_bytes,
        backing_uuid=old.identity.uuid or None,
    )
    found = changed_blocks.changed_areas(
        at.session, at.vm.moref, at.snapshot_moref, disk, base, patience=patience
    )
    if isinstance(found, FullRead):
        return Changes(extents=None, reasons=(reason(found.finding),))
    return Changes(extents=tuple(Extent(offset, length) for offset, length in found.areas))


def _doubt(disk: DiskInfo, old: KnownDisk) -> Reason | None:
    if old.identity is None:
        return OTHER_VM
    if is_mistrusted(old):
        return MISTRUSTED
    return MOVED if disk.address != old.identity.place else None


class DiskOpener:
    """Opens one frozen disk with the best transport, each time anew from the snapshot's own state.

    A disk that was moved to another datastore meanwhile (Storage vMotion) is found again that way.
    """

    def __init__(
        self,
        at: FrozenAt,
        disk: DiskInfo,
        ways: Sequence[transports.Transport],
        host: str,
        cancel: CancelToken,
    ) -> None:
        self._at = at
        self._disk = disk
        self._ways = ways
        self._host = host
        self._cancel = cancel

    def __call__(self, planned: Sequence[Extent] | None) -> OpenTransport:
        """Raises: DiskNotCoverableError, SourceError, CancelledError."""
        with vsphere_calls(self._host, self._cancel):
            request = transports.DiskRequest(
                session=self._at.session,
                vm=self._at.vm,
                snapshot_moref=self._at.snapshot_moref,
                disk=self._as_it_is_now(),
                planned=(
                    None
                    if planned is None
                    else tuple((extent.offset, extent.length) for extent in planned)
                ),
                cancelled=lambda: self._cancel.cancelled,
            )
            try:
                chosen = choose(self._ways, request)
            except NoTransportError as error:
                if error.retryable:
                    raise
                refusals = tuple(reason(refused.refusal) for refused in error.refusals)
                raise DiskNotCoverableError(self._disk.label, refusals) from error
        access = Access.RANDOM
        if chosen.reader.access is transports.Access.ASCENDING:
            access = Access.STREAM
        return OpenTransport(
            reader=_TransportReader(chosen.reader, self._host, self._cancel),
            report=TransferReport(
                transport=chosen.name,
                access=access,
                refusals=tuple(
                    reason(refused.refusal, warning=False) for refused in chosen.refusals
                ),
            ),
        )

    def _as_it_is_now(self) -> DiskInfo:
        try:
            disks = snapshot_disks(self._at.session, self._at.snapshot_moref)
        except ObjectGoneError as error:
            # passes: another attempt takes another snapshot
            raise UnreachableError(f"the snapshot is gone: {error}") from error
        for disk in disks:
            if disk.key == self._disk.key and disk.capacity_bytes == self._disk.capacity_bytes:
                return disk
        raise UnreachableError(f"{self._disk.label} is no longer in the snapshot")


def snapshot_disks(session: Session, snapshot_moref: str) -> tuple[DiskInfo, ...]:
    """The disks as they are frozen. Raises VsphereError."""
    snapshot = session.object(vim.vm.Snapshot, snapshot_moref)
    path = "config.hardware.device"
    values = fetch_one(session, f"read snapshot {snapshot_moref}", snapshot, (path,)).values
    return disks_of(values.get(path) or [])


class _TransportReader:
    """A reader of `vmware/` as one of ours: errors and kinds of extents."""

    def __init__(self, reader: transports.DiskReader, host: str, cancel: CancelToken) -> None:
        self._reader = reader
        self._host = host
        self._cancel = cancel

    @property
    def size_bytes(self) -> int:
        return self._reader.size_bytes

    def read_at(self, offset: int, length: int) -> bytes:
        with vsphere_calls(self._host, self._cancel):
            return self._reader.read_at(offset, length)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        with vsphere_calls(self._host, self._cancel):
            self._reader.read_into(offset, buffer)

    def try_read_at(self, offset: int, length: int) -> bytes | memoryview | None:
        with vsphere_calls(self._host, self._cancel):
            return self._reader.try_read_at(offset, length)

    def map_extents(self, offset: int, length: int) -> list[MappedExtent]:
        with vsphere_calls(self._host, self._cancel):
            mapped = self._reader.map_extents(offset, length)
        return [
            MappedExtent(
                part.offset,
                part.length,
                ExtentKind.ZERO if part.kind is transports.ExtentKind.ZERO else ExtentKind.DATA,
            )
            for part in mapped
        ]

    def close(self) -> None:
        self._reader.close()
