"""A hot-added disk is a disk like any other: through both conformance suites."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest

from appliance.base.units import KIB, MIB
from tests.contract.block_reader import BlockReaderSuite, MakeReader, sample_content
from tests.contract.transport import OpenDisk, TransportSuite
from tests.support.disk_as_block_reader import DiskAsBlockReader
from tests.support.guest_scsi import GuestScsi
from tests.support.inventories import a_disk, a_vm
from tests.support.scripted_appliance import PRODUCT_UUID, BackingFile, ScriptedAppliance
from tests.support.scripted_vcenter import ScriptedVcenter
from vmware.patience import Patience
from vmware.transports.appliance_disks import ApplianceDisks
from vmware.transports.contract import DiskReader, DiskRequest
from vmware.transports.hot_add import HotAdd


@pytest.fixture
def hot_added(tmp_path: Path) -> OpenDisk:
    """Disks of any content on one appliance."""
    server = ScriptedVcenter()
    guest = GuestScsi(tmp_path, product_uuid=PRODUCT_UUID)
    appliance = ScriptedAppliance(server, guest)
    disks = ApplianceDisks(device_root=tmp_path, patience=Patience(wait=lambda _: None))
    transport = HotAdd(disks, run_id="run-1")
    numbers = itertools.count()

    def open_disk(content: bytes, planned: Sequence[tuple[int, int]] | None = None) -> DiskReader:
        number = next(numbers)
        name, uuid = f"[ds] web/{number}.vmdk", f"6000C29a-0000-0000-0000-{number:012x}"
        appliance.files[name] = BackingFile(content=content, uuid=uuid)
        return transport.open(
            DiskRequest(
                session=server.session(),
                vm=a_vm(),
                snapshot_moref="snapshot-1",
                disk=a_disk(file_name=name, backing_uuid=uuid, capacity_bytes=len(content)),
                planned=tuple(planned) if planned is not None else None,
            )
        )

    return open_disk


class TestHotAdd(TransportSuite):
    @pytest.fixture
    def open_disk(self, hot_added: OpenDisk) -> OpenDisk:
        return hot_added


class TestHotAddAsBlockReader(BlockReaderSuite):
    @pytest.fixture
    def make(self, hot_added: OpenDisk) -> MakeReader:
        return lambda content: DiskAsBlockReader(hot_added(content))

    @pytest.fixture
    def content(self) -> bytes:
        return sample_content(MIB + 5 * KIB + 512)
