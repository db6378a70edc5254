"""HttpNfcLease as a managed object: what clients see of a lease, and do with it.

It belongs to the session that began it and is aborted when the session ends.
Source: vSphere Web Services API, HttpNfcLease; design notes on vSphere, section 4c.
Thread model: any thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim, vmodl

from lab.data_plane.import_spec import FileKind
from lab.data_plane.lease import (
    Lease,
    LeaseEndedError,
    LeaseFile,
    LeaseState,
)
from lab.data_plane.nfc import PREFIX
from lab.esx.hardware import VmConfig
from lab.esx.virtual_machine import VirtualMachine
from lab.faults import FaultName
from lab.vcenter.call import Call
from lab.vcenter.certificate import ServerIdentity
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method


@dataclass(frozen=True, slots=True, kw_only=True)
class Leased:
    """A VM under a lease: its inventory object, its engine, the disks that are meant."""

    entity: ManagedEntity
    engine: VirtualMachine
    config: VmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferPlace:
    """Where a lease's URLs point."""

    authority: str  # "*:port" leaves the host to the client
    identity: ServerIdentity


class NfcLease(LabObject):
    vim_type = vim.HttpNfcLease
    moid_prefix = "session"

    def __init__(self, vcenter: LabVcenter, lease: Lease, leased: Leased, place: TransferPlace):
        super().__init__(vcenter, f"session[{lease.lease_id}]")
        self.lease = lease
        self._leased = leased
        self._place = place
        lease.changed = self.touch

    def guarded_by(self) -> LabObject:
        return self._leased.entity

    def unregister(self) -> None:
        """The session ended, or the lab."""
        self.lease.fail(LeaseEndedError("NotAuthenticated", "the session ended"))
        super().unregister()

    @computed("state")
    def _state(self, _call: Call | None) -> Any:
        return self.lease.state.value

    @computed("mode")
    def _mode(self, _call: Call | None) -> Any:
        return "pushOrGet"

    @computed("initializeProgress")
    def _initialize_progress(self, _call: Call | None) -> Any:
        return 0 if self.lease.state is LeaseState.INITIALIZING else 100

    @computed("transferProgress")
    def _transfer_progress(self, _call: Call | None) -> Any:
        return self.lease.percent

    @computed("capabilities")
    def _capabilities(self, _call: Call | None) -> Any:
        return vim.HttpNfcLease.Capabilities(pullModeSupported=False, corsSupported=False)

    @computed("error")
    def _error(self, _call: Call | None) -> Any:
        if self.lease.state is not LeaseState.ERROR or self.lease.error is None:
            return None
        return _fault(self.lease.error)

    @computed("info")
    def _info(self, _call: Call | None) -> Any:
        if self.lease.state is LeaseState.INITIALIZING or not self.lease.files:
            return None
        return vim.HttpNfcLease.Info(
            lease=self.ref,
            entity=self._leased.entity.ref,
            deviceUrl=[self._device_url(file) for file in self.lease.files],
            totalDiskCapacityInKB=sum(file.capacity_bytes for file in self.lease.files) >> 10,
            leaseTimeout=int(self.lease.timeout_s),
        )

    def _device_url(self, file: LeaseFile) -> Any:
        return vim.HttpNfcLease.DeviceUrl(
            key=file.key,
            importKey=file.import_key,
            url=f"https://{self._place.authority}{PREFIX}/{self.lease.lease_id}/{file.target_id}",
            sslThumbprint=self._place.identity.fingerprint_sha1,
            disk=file.kind is FileKind.DISK,
            targetId=file.target_id,
            fileSize=file.stored_bytes,
        )

    @method("HttpNfcLeaseProgress")
    def progress(self, _call: Call, percent: int) -> None:
        moid = self._leased.entity.moid
        if self.vcenter.switches.take(FaultName.LEASE_EXPIRY, vm=moid):
            self.lease.expire()
        try:
            self.lease.progress(percent)
        except ValueError as error:
            raise vmodl.fault.InvalidArgument(msg=str(error), invalidProperty="percent") from error
        except LeaseEndedError as error:
            raise _fault(error) from error

    @method("HttpNfcLeaseComplete")
    def complete(self, _call: Call) -> None:
        with _lease_faults():
            self.lease.complete()

    @method("HttpNfcLeaseAbort")
    def abort(self, _call: Call, _reason: Any) -> None:
        with _lease_faults():
            self.lease.abort()

    @method("HttpNfcLeaseGetManifest")
    def manifest(self, _call: Call) -> Any:
        with _lease_faults():
            self.lease.require_ready()
        return [
            vim.HttpNfcLease.ManifestEntry(
                key=entry.key,
                sha1=entry.checksum_hex if entry.checksum_type == "sha1" else "",
                checksum=entry.checksum_hex,
                checksumType=entry.checksum_type,
                size=entry.size_bytes,
                disk=entry.disk,
                capacity=entry.capacity_bytes if entry.disk else None,
                populatedSize=entry.populated_bytes if entry.disk else None,
            )
            for entry in self.lease.manifest()
        ]

    @method("HttpNfcLeaseSetManifestChecksumType")
    def set_checksum_types(self, _call: Call, chosen: list[Any]) -> None:
        with _lease_faults():
            self.lease.require_ready()
        for pair in chosen:
            try:
                self.lease.set_checksum_type(pair.key, pair.value.lower())
            except ValueError as error:
                raise vmodl.fault.InvalidArgument(
                    msg=f"no checksum type {error}", invalidProperty="deviceUrlsToChecksumTypes"
                ) from error


def _fault(error: LeaseEndedError) -> Any:
    kind = getattr(vim.fault, error.fault, None) or getattr(vmodl.fault, error.fault)
    return kind(msg=str(error))


@contextlib.contextmanager
def _lease_faults() -> Iterator[None]:
    try:
        yield
    except LeaseEndedError as error:
        raise _fault(error) from error
