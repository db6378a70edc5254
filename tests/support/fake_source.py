"""A hypervisor in memory behind the source contract, with exact change lists and planned faults."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from appliance.base.consistency import Consistency
from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import RunContext
from appliance.blocks.extents import Extent, normalise
from appliance.sources.contract import FreezeRequest, Orphan, SourceVm
from appliance.sources.errors import SourceReadError
from appliance.sources.frozen import (
    Access,
    DiskIdentity,
    FrozenDisk,
    FrozenVm,
    KnownDisk,
    KnownState,
    SkippedDisk,
    TransferReport,
)
from appliance.sources.vm_identity import VmIdentity
from tests.support.memory_reader import MemoryReader

BLOCK = 4096


@dataclass
class FakeDisk:
    """States of a disk by change id: the change list between two is what differs, in blocks."""

    data: bytearray
    states: list[bytes] = field(default_factory=list)
    fail_after_bytes: int | None = None  # a read past this many bytes in all fails, for good
    hide: list[Extent] = field(default_factory=list)  # left out of change lists: a CBT fault
    uncoverable: Exception | None = None
    left_out: Reason | None = None  # why no snapshot covers it
    access: Access = Access.RANDOM
    read_bytes: int = 0

    def freeze(self) -> str:
        self.states.append(bytes(self.data))
        return f"epoch/{len(self.states) - 1}"

    def changed_since(self, change_id: str) -> list[Extent]:
        old, new = self.states[int(change_id.split("/")[1])], self.states[-1]
        blocks = [
            Extent(at, min(BLOCK, len(new) - at))
            for at in range(0, len(new), BLOCK)
            if old[at : at + BLOCK] != new[at : at + BLOCK]
        ]
        hidden = {at for extent in self.hide for at in range(extent.offset, extent.end, BLOCK)}
        return normalise(extent for extent in blocks if extent.offset not in hidden)


class FakeReader(MemoryReader):
    """Reader and transfer of one frozen state."""

    def __init__(self, disk: FakeDisk, before_read: Callable[[], None]) -> None:
        super().__init__(disk.states[-1])
        self._disk = disk
        self._before_read = before_read
        self.closed = False

    def begin(self, planned: Sequence[Extent] | None) -> None:
        if self._disk.uncoverable is not None:
            raise self._disk.uncoverable

    def report(self) -> TransferReport:
        return TransferReport(transport="fake", access=self._disk.access)

    def read_at(self, offset: int, length: int) -> bytes:
        self._before_read()
        assert not self.closed, "read after the freeze has ended"
        limit = self._disk.fail_after_bytes
        if limit is not None and self._disk.read_bytes + length > limit:
            raise SourceReadError("the fake transport broke")
        self._disk.read_bytes += length
        return super().read_at(offset, length)


@dataclass
class FakeVm:
    name: str
    disks: list[FakeDisk]
    host: str = "esx1"
    datastore: str = "ds1"
    obstacles: tuple[Reason, ...] = ()
    freeze_errors: list[Exception] = field(default_factory=list)
    tags: frozenset[str] = frozenset()
    folder: str = "/dc/vm"


@dataclass
class FakeSource:
    vms: list[FakeVm]
    name: str = "fake"
    before_read: Callable[[], None] = lambda: None
    frozen: set[str] = field(default_factory=set)
    most_frozen: int = 0
    run_ids: list[RunId] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def list_vms(self) -> list[SourceVm]:
        return [
            SourceVm(
                key=f"{number}",
                name=vm.name,
                identity=VmIdentity(server_id="fake", moref=f"vm-{number}", instance_uuid=None),
                folder=vm.folder,
                host=vm.host,
                datastores=(vm.datastore,),
                obstacles=vm.obstacles,
            )
            for number, vm in enumerate(self.vms)
        ]

    def keys_with_tag(self, tag: str) -> frozenset[str]:
        return frozenset(f"{n}" for n, vm in enumerate(self.vms) if tag in vm.tags)

    @contextmanager
    def freeze(
        self, vm: SourceVm, request: FreezeRequest, context: RunContext
    ) -> Iterator[FrozenVm]:
        fake = self.vms[int(vm.key)]
        self.run_ids.append(request.run_id)
        if fake.freeze_errors:
            raise fake.freeze_errors.pop(0)
        with self.lock:
            assert vm.key not in self.frozen, "frozen twice"
            self.frozen.add(vm.key)
            self.most_frozen = max(self.most_frozen, len(self.frozen))
        disks = [
            self._disk(fake, number, request)
            for number, disk in enumerate(fake.disks)
            if disk.left_out is None
        ]
        try:
            yield FrozenVm(
                name=request.point_name,
                created_at=datetime.now(UTC),
                consistency=Consistency.CRASH,
                source="fake",
                disks=disks,
                hardware={"identity": vm.identity.as_json()},
                instance=vm.identity.key,
                skipped=tuple(
                    SkippedDisk(label=f"disk {number}", reason=disk.left_out)
                    for number, disk in enumerate(fake.disks)
                    if disk.left_out is not None
                ),
            )
        finally:
            for disk in disks:
                assert isinstance(disk.reader, FakeReader)
                disk.reader.closed = True
            with self.lock:
                self.frozen.discard(vm.key)

    def _disk(self, vm: FakeVm, number: int, request: FreezeRequest) -> FrozenDisk:
        disk = vm.disks[number]
        change_id = disk.freeze()
        reader = FakeReader(disk, self.before_read)
        known, broken = _known(request.parent, number), _known(request.broken, number)
        return FrozenDisk(
            number=number,
            label=f"disk {number}",
            reader=reader,
            transfer=reader,
            changed=disk.changed_since(known.change_id) if known and known.change_id else None,
            changed_since_broken=(
                disk.changed_since(broken.change_id) if broken and broken.change_id else None
            ),
            change_id=change_id,
            identity=DiskIdentity(
                uuid=f"uuid-{number}", place=f"scsi0:{number}", change_id=change_id
            ),
            datastore=vm.datastore,
        )

    def leftovers(self, run_id: RunId) -> tuple[Reason, ...]:
        return ()

    def remove_orphans(self, alive: Callable[[], Collection[str]]) -> list[Orphan]:
        return []

    def close(self) -> None:
        pass


def _known(state: KnownState | None, number: int) -> KnownDisk | None:
    return state.disk(number) if state else None
