"""Moving a VM's files to another datastore, and the proof that none was left behind.

A running VM moves while it runs (Storage vMotion). All disks are named one by one, so that none
stays where it is because of a default. The proof reads every place that vSphere knows files of:
the .vmx, each disk with its chain, what `layoutEx` lists, and the VM's own list of datastores.
Thread model: functions; they block.
Source: design notes section 5 (finalise); vSphere API reference, VirtualMachineRelocateSpec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyVmomi import vim

from vmware.disks import disks_of, split_file_name
from vmware.errors import BusyError, UnsupportedError, VsphereError
from vmware.patience import Patience
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.tasks import wait_for_task

RELOCATE_DEADLINE_S = 7 * 86400.0  # the copy of the largest VM over the slowest link

_NO_LIVE_MOVE = ("NotEnoughLicenses", "LicenseRestricted", "FeatureNotLicensed", "NotSupported")


class LiveMoveRefusedError(UnsupportedError):
    """The VM cannot move while it runs, mostly for want of a licence for Storage vMotion."""

    code = "vsphere.no-live-move"


def relocate_vm(
    session: Session,
    vm_moref: str,
    datastore_moref: str,
    *,
    thin: bool = True,
    patience: Patience | None = None,
    deadline_s: float = RELOCATE_DEADLINE_S,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Return when the move has ended; a VM that is there already is left alone.

    Raises:
        LiveMoveRefusedError: it runs, and the server does not move it so; nothing has changed.
        VsphereError: the VM is where it was, and goes on there.
    """
    what = f"move {vm_moref}"
    vm = session.object(vim.VirtualMachine, vm_moref)
    paths = ("config.hardware.device", "runtime.powerState")
    read = fetch_one(session, what, vm, paths).values
    target = session.object(vim.Datastore, datastore_moref)
    spec = vim.vm.RelocateSpec(
        datastore=target,
        disk=[
            _locator(disk.key, target, thin=thin)
            for disk in disks_of(read.get("config.hardware.device") or [])
        ],
    )
    try:
        task = session.call(what, vm.RelocateVM_Task, spec, "defaultPriority")
        wait_for_task(
            session,
            task,
            what=what,
            deadline_s=deadline_s,
            cancelled=(patience or Patience()).cancelled,
            on_progress=on_progress,
        )
    except VsphereError as error:
        runs = str(read.get("runtime.powerState")) != "poweredOff"
        if runs and any(name in error.fault for name in _NO_LIVE_MOVE):
            raise LiveMoveRefusedError(str(error), fault=error.fault) from error
        raise


def files_on(session: Session, vm_moref: str, datastore: str) -> tuple[str, ...]:
    """What of the VM is still on the datastore of this name; empty: it has left.

    Raises VsphereError: it cannot be told.
    """
    vm = session.object(vim.VirtualMachine, vm_moref)
    what = f"look where the files of {vm_moref} are"
    session.call(what, vm.RefreshStorageInfo)
    paths = (
        "config.files.vmPathName",
        "config.hardware.device",
        "config.datastoreUrl",
        "layoutEx.file",
        "datastore",
    )
    read = fetch_one(session, what, vm, paths).values
    names = [str(read.get("config.files.vmPathName", ""))]
    if not names[0]:
        raise BusyError(f"{what}: vSphere does not show them now")
    for disk in disks_of(read.get("config.hardware.device") or []):
        names += disk.chain or (disk.file_name,)
    names += [str(file.name) for file in read.get("layoutEx.file") or ()]
    found = [name for name in dict.fromkeys(names) if split_file_name(name)[0] == datastore]
    for used in read.get("datastore") or ():
        name = fetch_one(session, what, used, ("summary.name",)).values.get("summary.name")
        if name == datastore and not found:
            found.append(f"[{datastore}]")
    return tuple(found)


def _locator(disk_key: int, datastore: Any, *, thin: bool) -> Any:
    return vim.vm.RelocateSpec.DiskLocator(
        diskId=disk_key,
        datastore=datastore,
        diskBackingInfo=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            diskMode="persistent", thinProvisioned=thin, fileName=""
        ),
    )
