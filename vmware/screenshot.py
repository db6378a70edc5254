"""What a VM's screen shows, as a PNG.

vSphere writes the picture into the VM's own folder; it is read from there and stays, to go with the
folder. Only for VMs whose folder goes: there is no other clean-up.
Thread model: a function; it blocks.
Source: design notes section 6; vSphere API reference, CreateScreenshot_Task.
"""

from __future__ import annotations

from pyVmomi import vim

from vmware.datastore_files import read_small_file
from vmware.datastore_path import DatastorePath
from vmware.inventory import read_vm
from vmware.patience import Patience
from vmware.session import Session
from vmware.tasks import wait_for_task

_DEADLINE_S = 60.0
PICTURE_BYTES_MAX = 16 << 20


def take_screenshot(session: Session, vm_moref: str, *, patience: Patience | None = None) -> bytes:
    """Raises: InvalidPowerStateError: the VM is off. VsphereError: there is no picture."""
    what = f"take a screenshot of {vm_moref}"
    vm = session.object(vim.VirtualMachine, vm_moref)
    task = session.call(what, vm.CreateScreenshot_Task)
    path = wait_for_task(
        session,
        task,
        what=what,
        deadline_s=_DEADLINE_S,
        cancelled=(patience or Patience()).cancelled,
    )
    datacenter = read_vm(session, vm_moref).datacenter_path
    return read_small_file(session, datacenter, DatastorePath.parse(str(path)), PICTURE_BYTES_MAX)
