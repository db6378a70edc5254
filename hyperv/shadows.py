r"""Shadow copies with the Hyper-V writer: the way for hosts and VMs without reference points.

    make (diskshadow, all volumes of the VM) -> files below folders of ours -> [read] -> remove

A disk `D:\VM\a.vhdx` reads as `<exposed>\VM\a.vhdx`. Where the guest was brought to rest, its
consistent state is the `*-AutoRecovery.avhdx` child beside it, which is why every chain is looked
up again inside the shadow copy.

Invariants: what was made is in a folder named by our marker before it exists, so it is found and
removed after a crash. Thread model: functions; they block. Source: design notes section 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from hyperv.errors import FileError, HypervError
from hyperv.host_session import HostSession
from hyperv.marker import Marker
from hyperv.patience import Patience
from hyperv.script_types import (
    CheckpointDisk,
    MarkedShadow,
    MarkedShadows,
    Removed,
    ShadowDisks,
    ShadowSet,
    VmDisk,
)
from hyperv.windows_path import drive_of

MAKE_DEADLINE_S: Final = 1800.0  # writers in guests have their say
_CSV = "C:\\ClusterStorage\\"


def make_shadow(
    host: HostSession, vm_id: str, marker: Marker, disks: Sequence[VmDisk], patience: Patience
) -> ShadowSet:
    """Blocks until the shadow copies of all volumes are made.

    Raises: ScriptError: diskshadow or a writer failed, and what it had made is gone again, unless
        the error carries a note; GoneError, HypervError.
    """
    volumes = sorted({volume_of(disk.path) for disk in disks})
    parameters = {"marker": marker.text, "vm_id": vm_id, "volumes": volumes}
    try:
        return host.call(
            "create_shadow",
            parameters,
            ShadowSet,
            deadline_s=MAKE_DEADLINE_S,
            patience=patience.unstoppable(),
        )
    except HypervError as error:
        try:
            remove_shadow(host, marker.text, patience.unstoppable())
        except HypervError as second:
            error.add_note(f"shadow copies of {marker.text} may still be there: {second}")
        raise


def read_shadow_disks(
    host: HostSession, shadow: ShadowSet, disks: Sequence[VmDisk], patience: Patience
) -> list[CheckpointDisk]:
    """The chains of the disks inside the shadow copies, leaf first. Raises: FileError, …"""
    wanted = [
        {
            "attachment": disk.attachment,
            "controller": disk.controller,
            "controller_number": disk.controller_number,
            "location": disk.location,
            "path": _inside(shadow, disk.path),
        }
        for disk in disks
    ]
    found = host.call("shadow_disks", {"disks": wanted}, ShadowDisks, patience=patience).disks
    if [disk.attachment for disk in found] != [disk.attachment for disk in disks]:
        raise FileError(f"{host.address}: other disks than asked for in the shadow copy")
    return found


def remove_shadow(host: HostSession, marker: str, patience: Patience) -> int:
    """Remove all shadow copies of a marker; return how many there were. Raises HypervError."""
    return host.call("remove_shadow", {"marker": marker}, Removed, patience=patience).removed


def list_shadows(host: HostSession, prefix: str, patience: Patience) -> list[MarkedShadow]:
    """Raises HypervError."""
    found = host.call("list_shadows", {"prefix": prefix}, MarkedShadows, patience=patience)
    return found.shadows


def volume_of(path: str) -> str:
    r"""The volume that a file lies on: `D:\`, or a cluster shared volume with its name.

    Raises: FileError: not a path of a local drive.
    """
    drive = drive_of(path)
    if path.upper().startswith(_CSV.upper()):
        name = path[len(_CSV) :].partition("\\")[0]
        return f"{_CSV}{name}\\"
    return f"{drive}:\\"


def _inside(shadow: ShadowSet, path: str) -> str:
    volume = volume_of(path)
    for found in shadow.shadows:
        if found.volume.upper() == volume.upper():
            return f"{found.exposed}\\{path[len(volume) :]}"
    raise FileError(f"{path}: no shadow copy of its volume was made")
