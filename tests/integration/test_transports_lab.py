"""The transports against the practice vCenter: the suite, its fault switches, importing a VM."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from pyVmomi import vim

from appliance.base.units import KIB, MIB
from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from tests.contract.block_reader import sample_content
from tests.contract.transport import OpenDisk, TransportSuite, segments
from tests.support.lab_machines import Practice, disk, practice, snapped
from vmware.datastore_files import read_small_file, write_small_file
from vmware.datastore_path import DatastorePath
from vmware.disks import disks_of
from vmware.errors import (
    FileFaultError,
    NoSpaceError,
    ObjectGoneError,
    SnapshotError,
    TransportError,
    VsphereError,
)
from vmware.inventory import find_vms, read_vm
from vmware.session import Endpoint, Session
from vmware.transports.choice import choose
from vmware.transports.contract import DiskReader, DiskRequest, Transport
from vmware.transports.datastore_https import DatastoreHttpsTransport, Tuning
from vmware.transports.nfc_export import NfcLeaseTransport
from vmware.transports.nfc_import import NfcImport
from vmware.transports.range_client import RetryPolicy
from vmware.vmdk_descriptor import VmdkError

_CONTENT = sample_content(3 * MIB + 5 * KIB)
_SMALL = Tuning(
    piece_bytes=256 * KIB,
    ticket_piece_bytes=512 * KIB,
    window_bytes=1 * MIB,
    small_bytes=4 * KIB,
    retry=RetryPolicy(pauses_s=(0.0, 0.0, 0.0)),
)
_NUMBERS = itertools.count(1)
_TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "vcenter": lambda: DatastoreHttpsTransport(_SMALL, direct=False),
    "host": lambda: DatastoreHttpsTransport(_SMALL),
    "nfc-lease": NfcLeaseTransport,
}


@pytest.fixture(scope="module")
def lab() -> Iterator[Practice]:
    with practice() as lab:
        yield lab


@pytest.fixture(scope="module")
def session(lab: Practice) -> Iterator[Session]:
    endpoint = Endpoint(
        address=lab.vcenter.address,
        port=lab.vcenter.port,
        user=lab.vcenter.user,
        fingerprint_sha256=lab.vcenter.fingerprint,
    )
    with Session.connect(endpoint, lambda: lab.vcenter.password) as session:
        yield session


def _snapshot_of(
    lab: Practice,
    session: Session,
    content: bytes,
    planned: Sequence[tuple[int, int]] | None = None,
) -> DiskRequest:
    """A VM that is off, whose disk holds `content`, with a snapshot."""
    name = f"web {next(_NUMBERS)}"
    vm = lab.create(name, disk(size_bytes=len(content)))
    (lab.folder / "ds1" / name / f"{name}-flat.vmdk").write_bytes(content)
    snapshot = snapped(vm)
    (frozen,) = disks_of(snapshot.config.hardware.device)
    return DiskRequest(
        session=session,
        vm=read_vm(session, vm._moId),
        snapshot_moref=snapshot._moId,
        disk=frozen,
        planned=None if planned is None else tuple(planned),
    )


def _wait_until_nothing_is_locked(lab: Practice) -> None:
    """The host's threads notice a moment later that a client has gone."""
    deadline_s = time.monotonic() + 20
    while held := lab.vcenter.file_locks.all_locks():
        assert time.monotonic() < deadline_s, held
        time.sleep(0.01)


def _whole(reader: DiskReader) -> bytes:
    try:
        return b"".join(reader.read_at(*part) for part in segments(reader.size_bytes, 512 * KIB))
    finally:
        reader.close()


@pytest.mark.integration
class TestTransportsOfTheLab(TransportSuite):
    segment_bytes = 512 * KIB

    @pytest.fixture
    def content(self) -> bytes:
        return _CONTENT

    @pytest.fixture(params=_TRANSPORTS)
    def open_disk(
        self, request: pytest.FixtureRequest, lab: Practice, session: Session
    ) -> Iterator[OpenDisk]:
        transport = _TRANSPORTS[request.param]()

        def open_disk(
            content: bytes, planned: Sequence[tuple[int, int]] | None = None
        ) -> DiskReader:
            asked = _snapshot_of(lab, session, content, planned)
            assert transport.refusal(asked) is None
            return transport.open(asked)

        yield open_disk
        _wait_until_nothing_is_locked(lab)


pytestmark = pytest.mark.integration


def test_bulk_comes_from_the_host(lab: Practice, session: Session) -> None:
    """With tickets, from the address that the host names; vCenter is the fall-back."""
    reader = DatastoreHttpsTransport(_SMALL).open(_snapshot_of(lab, session, _CONTENT))
    assert reader.route.startswith("host ")
    assert _whole(reader) == _CONTENT


_HTTP_FAULTS = [
    (FaultName.HTTP_500, 0),
    (FaultName.HTTP_503, 0),
    (FaultName.DYING_HOST, 0),
    (FaultName.HTTP_500_MID_STREAM, 100_000),
    (FaultName.TRUNCATED_BODY, 100_000),
    (FaultName.RESET_MID_STREAM, 100_000),
    (FaultName.TICKET_REFUSED, 0),
]


@pytest.mark.parametrize("transport", ["vcenter", "host"])
@pytest.mark.parametrize(("fault", "amount"), _HTTP_FAULTS)
def test_faults_of_the_data_plane_are_read_through(
    lab: Practice, session: Session, transport: str, fault: FaultName, amount: int
) -> None:
    """Whatever breaks on the way, the disk comes whole and right."""
    reader = _TRANSPORTS[transport]().open(_snapshot_of(lab, session, _CONTENT))
    lab.faults.arm(fault, times=2, amount=amount, path="*-flat.vmdk")
    try:
        assert _whole(reader) == _CONTENT
    finally:
        lab.faults.disarm()


_LEASE_FAULTS: list[tuple[FaultName, type[VsphereError]]] = [
    (FaultName.LEASE_ERROR, VsphereError),
    (FaultName.LEASE_BAD_GRAIN, VmdkError),
    (FaultName.LEASE_WRONG_LBA, VmdkError),
    (FaultName.LEASE_NO_FOOTER, TransportError),
    (FaultName.TRUNCATED_BODY, TransportError),
    (FaultName.RESET_MID_STREAM, TransportError),
    (FaultName.LEASE_EXPIRY, VsphereError),
]


@pytest.mark.parametrize(("fault", "error"), _LEASE_FAULTS)
def test_faults_of_a_lease_are_errors_and_leave_none(
    lab: Practice, session: Session, fault: FaultName, error: type[VsphereError]
) -> None:
    """Never a disk with wrong bytes; another lease can be had at once."""
    asked = _snapshot_of(lab, session, _CONTENT)
    lab.faults.arm(fault, amount=100_000)
    try:
        with pytest.raises(error):
            _whole(NfcLeaseTransport().open(asked))
    finally:
        lab.faults.disarm()
    assert _whole(NfcLeaseTransport().open(asked)) == _CONTENT


def test_a_locked_file_falls_through_to_the_lease(lab: Practice, session: Session) -> None:
    """The choice says why the datastore was not read."""
    asked = _snapshot_of(lab, session, _CONTENT)
    lab.faults.arm(FaultName.FILE_LOCKED, times=1000, path="*-flat.vmdk")
    try:
        chosen = choose([DatastoreHttpsTransport(_SMALL), NfcLeaseTransport()], asked)
        assert _whole(chosen.reader) == _CONTENT
    finally:
        lab.faults.disarm()
    assert chosen.name == "nfc-lease"
    assert [refused.transport for refused in chosen.refusals] == ["datastore-https"]
    assert "500" in chosen.refusals[0].refusal.text


def test_a_disk_above_a_snapshot_is_refused_over_the_datastore(
    lab: Practice, session: Session
) -> None:
    """A delta is no flat file; the lease sends the merged chain."""
    first = _snapshot_of(lab, session, _CONTENT)
    vm = session.object(vim.VirtualMachine, first.vm.moref)
    second = snapped(vm, "second")
    (frozen,) = disks_of(second.config.hardware.device)
    asked = DiskRequest(session=session, vm=first.vm, snapshot_moref=second._moId, disk=frozen)
    refusal = DatastoreHttpsTransport().refusal(asked)
    assert refusal is not None
    assert _whole(NfcLeaseTransport().open(asked)) == _CONTENT


def test_a_snapshot_that_is_gone_does_not_open(lab: Practice, session: Session) -> None:
    """By lease: nothing hangs and nothing is left."""
    asked = _snapshot_of(lab, session, _CONTENT)
    gone = DiskRequest(
        session=session, vm=asked.vm, snapshot_moref="snapshot-99999", disk=asked.disk
    )
    with pytest.raises((ObjectGoneError, SnapshotError)):
        NfcLeaseTransport().open(gone)


# Import


def _spec(name: str, *sizes_bytes: int) -> Any:
    controller = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    changes = [vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)]
    changes += [disk(size_bytes=size, unit=unit) for unit, size in enumerate(sizes_bytes)]
    for number, change in enumerate(changes[1:]):
        change.device.key = -10 - number
    config = vim.vm.ConfigSpec(
        name=name,
        files=vim.vm.FileInfo(vmPathName="[ds1]"),
        deviceChange=changes,
        guestId="debian11_64Guest",
        extraConfig=[vim.option.OptionValue(key="nvram", value="ovf:/file/nvram")],
        numCPUs=1,
        memoryMB=128,
    )
    return vim.vm.VmImportSpec(configSpec=config)


def _begin(lab: Practice, session: Session, name: str, *sizes_bytes: int) -> NfcImport:
    datacenter = session.content.rootFolder.childEntity[0]
    return NfcImport.begin(
        session,
        _spec(name, *sizes_bytes),
        pool_moref=datacenter.hostFolder.childEntity[0].resourcePool._GetMoId(),
        folder_moref=datacenter.vmFolder._GetMoId(),
    )


def _flats(lab: Practice, name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((lab.folder / "ds1" / name).glob("*-flat.vmdk"))]


def _names(session: Session) -> set[str]:
    return {found.name for found in find_vms(session, ["*"])}


def test_an_imported_vm_has_the_disks_that_were_written(lab: Practice, session: Session) -> None:
    """Two disks, one of them mostly zeros, and nvram: all of it as given, and the VM is usable."""
    other = bytearray(5 * MIB)
    other[4 * MIB : 4 * MIB + 700] = random.Random(1).randbytes(700)
    with _begin(lab, session, "restored", len(_CONTENT), len(other)) as importing:
        first = importing.disk("ParaVirtualSCSIController0:0", len(_CONTENT))
        second = importing.disk("ParaVirtualSCSIController0:1", len(other))
        for offset, length in segments(len(_CONTENT), 300_000):
            first.write_at(offset, _CONTENT[offset : offset + length])
        second.zero_at(0, 4 * MIB)
        second.write_at(4 * MIB, other[4 * MIB : 4 * MIB + 700])
        first.close()
        second.close()
        nvram = importing.nvram_device
        assert nvram is not None
        importing.put_nvram(nvram, b"nvram of the original")
        importing.finish()
    first_flat, second_flat = _flats(lab, "restored")
    assert first_flat == _CONTENT
    assert second_flat == other
    found = read_vm(session, importing.vm_moref)
    assert (found.name, len(found.disks)) == ("restored", 2)
    assert (lab.folder / "ds1/restored/restored.nvram").read_bytes() == b"nvram of the original"
    assert lab.library.get(importing.vm_moref).power is PowerState.OFF


def test_a_small_file_is_put_beside_the_disks(lab: Practice, session: Session) -> None:
    """nvram of a restored VM, where the lease has no place for it: created, replaced, read back."""
    asked = _snapshot_of(lab, session, bytes(MIB))
    place = DatastorePath.parse(asked.disk.file_name).sibling("other.nvram")
    for content in (b"first", b"second" * 10_000, b""):
        write_small_file(session, asked.vm.datacenter_path, place, content)
        assert read_small_file(session, asked.vm.datacenter_path, place, 1 << 20) == content
    lab.faults.arm(FaultName.NO_SPACE)
    try:
        with pytest.raises(NoSpaceError):
            write_small_file(session, asked.vm.datacenter_path, place, b"x")
    finally:
        lab.faults.disarm()
    with pytest.raises(FileFaultError):
        write_small_file(session, asked.vm.datacenter_path, DatastorePath("ds9", "a/b"), b"x")


def test_an_import_that_is_not_finished_leaves_nothing(lab: Practice, session: Session) -> None:
    """Neither VM nor files, at whatever point it was left."""

    def nothing(_importing: NfcImport) -> None: ...

    def half(importing: NfcImport) -> None:
        importing.disk("ParaVirtualSCSIController0:0", MIB).write_at(0, bytes(MIB // 2))

    def open_disk(importing: NfcImport) -> None:
        importing.disk("ParaVirtualSCSIController0:0", MIB).write_at(0, b"x" * MIB)
        with pytest.raises(TransportError, match="not uploaded to its end"):
            importing.finish()

    def whole(importing: NfcImport) -> None:
        writer = importing.disk("ParaVirtualSCSIController0:0", MIB)
        writer.write_at(0, b"x" * MIB)
        writer.close()

    for number, act in enumerate([nothing, half, open_disk, whole]):
        with _begin(lab, session, f"never {number}", MIB) as importing:
            act(importing)
        assert f"never {number}" not in _names(session)
        assert not (lab.folder / "ds1" / f"never {number}").exists()
    _wait_until_nothing_is_locked(lab)


def test_a_disk_of_another_size_is_refused_by_the_host(lab: Practice, session: Session) -> None:
    """The host's answer reaches the writer, and the VM is gone."""
    with _begin(lab, session, "odd", MIB) as importing:
        writer = importing.disk("ParaVirtualSCSIController0:0", 2 * MIB)
        with pytest.raises(TransportError):
            for offset in range(0, 2 * MIB, 64 * KIB):
                writer.write_at(offset, random.Random(offset).randbytes(64 * KIB))
            writer.close()
        with pytest.raises(TransportError):
            writer.close()
    assert "odd" not in _names(session)


def test_there_is_no_disk_at_a_place_that_the_spec_did_not_name(
    lab: Practice, session: Session
) -> None:
    """A typed error, and the VM is gone."""
    with (
        pytest.raises(VsphereError, match="no disk"),
        _begin(lab, session, "elsewhere", MIB) as importing,
    ):
        importing.disk("ParaVirtualSCSIController0:5", MIB)
    assert "elsewhere" not in _names(session)
