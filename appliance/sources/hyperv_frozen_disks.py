"""The disks of a VM at a frozen moment: which can be read, and each with its reader and changes.

    frozen files -> (shares of ours where the host has none) -> SMB reader, change lists

Thread model: one freeze opens; what it hands out may be read by many.
Source: design notes sections 3 to 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from appliance.base.ids import RunId
from appliance.base.reasons import Reason
from appliance.sources.frozen import FrozenDisk, SkippedDisk
from appliance.sources.hyperv_disks import ChangesAsked, change_id_of, identity_of_disk, numbers
from appliance.sources.hyperv_freeze_run import FreezeRun, Moment
from appliance.sources.hyperv_listing import disk_label, relayed, volume_label
from appliance.sources.hyperv_smb_reader import SmbDiskOpener
from appliance.sources.reopening_reader import ReopeningReader
from hyperv.config_capture import CapturedDisk
from hyperv.errors import HypervError
from hyperv.inventory import disk_obstacle
from hyperv.script_types import CheckpointDisk, Vm, VmDisk
from hyperv.shares import share_drives, unshare
from hyperv.windows_path import drive_of


def covered_disks(vm: Vm) -> tuple[list[VmDisk], list[SkippedDisk]]:
    covered, skipped = [], []
    for disk in vm.disks:
        obstacle = disk_obstacle(disk)
        if obstacle is None:
            covered.append(disk)
        else:
            skipped.append(SkippedDisk(label=disk_label(disk), reason=relayed(obstacle)))
    return covered, skipped


def readable_disks(
    disks: Sequence[CheckpointDisk], vm: Vm
) -> tuple[list[CheckpointDisk], list[SkippedDisk]]:
    """Without those whose files nobody can look into, and those that were skipped already; of the
    VM's other disks, those that are not among them are skipped now."""
    left_out = {disk.place for disk in vm.disks if disk_obstacle(disk) is not None}
    readable, skipped = [], []
    for disk in disks:
        if disk.place in left_out:
            continue
        broken = next((file for file in disk.chain if file.error), None)
        if broken is None:
            readable.append(disk)
        else:
            reason = Reason(
                "disk.unreadable",
                f"the host cannot look into {broken.path} ({broken.error})",
                "run `Test-VHD` on the host",
            )
            skipped.append(SkippedDisk(label=label_of(disk), reason=reason))
    frozen = {disk.place for disk in disks} | left_out
    skipped += [
        SkippedDisk(label=disk_label(disk), reason=_NOT_FROZEN)
        for disk in vm.disks
        if disk.place not in frozen
    ]
    return readable, skipped


_NOT_FROZEN = Reason(
    "disk.not-in-checkpoint",
    "the host left the disk out of the checkpoint, so nothing of it is in the recovery point",
    "look at the host's VMMS log, or back the disk up from within the guest",
)


def captured_disk(number: int, disk: CheckpointDisk) -> CapturedDisk:
    base, frozen = disk.chain[-1], disk.frozen
    return CapturedDisk(
        number=number,
        controller=disk.controller,
        controller_number=disk.controller_number,
        location=disk.location,
        path=base.path,
        format=base.format,
        type=base.type,
        virtual_disk_id=disk.virtual_disk_id,
        size_bytes=frozen.size_bytes,
        logical_sector_bytes=frozen.logical_sector_bytes,
        physical_sector_bytes=frozen.physical_sector_bytes,
        attachment=disk.attachment,
    )


def label_of(disk: CheckpointDisk) -> str:
    name = disk.chain[-1].path.rpartition("\\")[2]
    return f"{disk.controller.upper()} {disk.controller_number}:{disk.location} {name}"


class FrozenDisks:
    def __init__(self, run: FreezeRun) -> None:
        self._run = run

    def open(
        self, readable: Sequence[CheckpointDisk], moment: Moment, stack: ExitStack
    ) -> list[tuple[FrozenDisk, CheckpointDisk]]:
        request = self._run.request
        shares = self._shares(readable, stack)
        asked = ChangesAsked(
            self._run.session,
            self._run.vm.key,
            self._run.vm.identity.key,
            self._run.tools.intents,
            self._run.patience,
        )
        found = []
        for disk, number in zip(
            readable, numbers(readable, request.parent or request.broken), strict=True
        ):
            label = label_of(disk)
            login = partial(
                self._run.tools.nodes.smb_login,
                [file.path for file in disk.chain],
                self._run.tools.host,
            )
            opener = SmbDiskOpener(self._run.tools.host.name, login, disk.chain, shares)
            reader = ReopeningReader(
                label,
                disk.frozen.size_bytes,
                opener,
                self._run.context.cancel,
                backoff=self._run.tools.reopening,
            )
            stack.callback(reader.close)
            change_id = change_id_of(RunId(request.run_id)) if moment.is_tracked else None
            parent, broken = (request.parent, request.broken) if moment.is_tracked else (None, None)
            changes = asked.since(disk, number, parent)
            since_broken = asked.since(disk, number, broken)
            frozen = FrozenDisk(
                number=number,
                label=label,
                reader=reader,
                transfer=reader,
                changed=changes.extents,
                changed_since_broken=since_broken.extents,
                change_id=change_id,
                reasons=changes.reasons,
                identity=identity_of_disk(disk, change_id),
                datastore=volume_label(self._run.tools.host.name, disk.frozen.path),
            )
            found.append((frozen, disk))
        return found

    def _shares(
        self, disks: Sequence[CheckpointDisk], stack: ExitStack
    ) -> Mapping[str, str] | None:
        """Shares of ours where the host has no admin shares; None: it has."""
        if self._run.tools.host.facts.admin_shares:
            return None
        drives = sorted({drive_of(file.path) for disk in disks for file in disk.chain})
        stack.callback(self._unshare)
        return share_drives(self._run.session, drives, self._run.marker, self._run.patience)

    def _unshare(self) -> None:
        """Never raises."""
        try:
            unshare(self._run.session, self._run.marker.text, self._run.patience.unstoppable())
        except HypervError as error:
            self._run.log.warning("share not removed", marker=self._run.marker.text, error=error)
