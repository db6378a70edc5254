"""What has to be written to a VM's disks so that they are those of a recovery point.

    freeze since the point's state -> per disk: the hypervisor's change list (with what earlier
    attempts may have written), or all of it compared by hash (`jobs.disk_compare`) -> extents

Nothing is written here: the VM is only frozen and read.

Thread model: one comparison belongs to one roll-back and its thread.
Source: design notes on vSphere, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass

from appliance.base.consistency import Consistency
from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.base.run_context import Progress, RunContext
from appliance.blocks.extents import Extent, normalise
from appliance.jobs.disk_compare import differing_extents
from appliance.jobs.rollback_checks import check_frozen
from appliance.jobs.rollback_contract import RollbackMode
from appliance.jobs.rollback_journal import Touched
from appliance.repository.image_reader import ImageReader
from appliance.repository.manifest import Manifest
from appliance.repository.repository import Repository
from appliance.sources.contract import ConsistencyPolicy, FreezeRequest, SourceVm, VmSource
from appliance.sources.frozen import FrozenDisk, FrozenVm, KnownState

_CRASH = ConsistencyPolicy(wanted=Consistency.CRASH, least=Consistency.CRASH)  # the VM is off


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskPlan:
    """What is to be written to one disk, and how that was found."""

    number: int
    label: str
    size_bytes: int
    mode: RollbackMode
    extents: list[Extent]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackComparison:
    """A VM's disks against those of the point it goes back to."""

    repository: Repository
    source: VmSource
    vm: SourceVm
    manifest: Manifest
    state: KnownState  # the point's: what the change lists begin at
    run_id: RunId
    transports: tuple[str, ...]
    context: RunContext
    phase: Callable[[str], Progress]

    def plan(self, touched: Touched) -> list[DiskPlan]:
        """What is to be written to each disk, `touched` (by earlier attempts) with it.

        Raises: SourceError, DisksDifferError, CorruptError (of the point), CancelledError.
        """
        with self._frozen() as frozen:
            plans = []
            for disk, image in self._pairs(frozen):
                before = touched.get(disk.number, [])
                if disk.changed is not None and before is not None:
                    mode, extents = RollbackMode.CHANGED, normalise([*disk.changed, *before])
                else:
                    mode, extents = RollbackMode.COMPARED, self._compared(disk, image)
                plans.append(
                    DiskPlan(
                        number=disk.number,
                        label=disk.label,
                        size_bytes=image.size_bytes,
                        mode=mode,
                        extents=extents,
                        reasons=disk.reasons,
                    )
                )
        return plans

    def differences(self) -> dict[int, list[Extent]]:
        """Disk number -> where it differs from the point, by hash. Raises as `plan`."""
        with self._frozen() as frozen:
            return {disk.number: self._compared(disk, image) for disk, image in self._pairs(frozen)}

    def _frozen(self) -> AbstractContextManager[FrozenVm]:
        request = FreezeRequest(
            run_id=self.run_id,
            point_name=self.manifest.vm,
            consistency=_CRASH,
            parent=self.state,
            transports=self.transports,
        )
        return self.source.freeze(self.vm, request, self.context)

    def _pairs(self, frozen: FrozenVm) -> Iterator[tuple[FrozenDisk, ImageReader]]:
        """Each disk of the point, frozen, with the point's own; one that came since is left.

        Raises: DisksDifferError: one of them is not frozen.
        """
        check_frozen(frozen, self.manifest)
        for disk in frozen.disks:
            if self.manifest.disk(disk.number) is not None:
                with closing(self.repository.open_image(self.manifest, disk.number)) as image:
                    yield disk, image

    def _compared(self, disk: FrozenDisk, image: ImageReader) -> list[Extent]:
        if disk.transfer is not None:
            disk.transfer.begin(None)
        progress = self.phase(f"compare disk {disk.number}")
        return differing_extents(
            disk.reader,
            image.tree,
            self.repository.digester,
            RunContext(self.context.cancel, progress),
        )
