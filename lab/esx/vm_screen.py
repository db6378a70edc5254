"""Screenshots: what a running guest shows, as a PNG in the machine's folder."""

from __future__ import annotations

from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import HostError
from lab.esx.virtual_machine import VirtualMachine
from lab.esx.vm_state import PowerState
from lab.faults import FaultName

_NUMBERS = range(1, 10_000)


class ScreenUnavailableError(HostError):
    """There is no screen to take."""

    fault = "FileFault"


def take_screenshot(vm: VirtualMachine) -> DatastorePath:
    """Return the new file's path."""
    vm.refuse_unless(PowerState.ON)
    fields = {"vm": vm.vm_id, "vm_name": vm.config.name}
    machine = vm.machine
    if machine is None or vm.site.faults.take(FaultName.SCREEN_UNAVAILABLE, **fields):
        raise ScreenUnavailableError("the screen cannot be captured")
    temporary = vm.run_folder / "screen.png"
    try:
        machine.screenshot(temporary)
        data = temporary.read_bytes()
    finally:
        temporary.unlink(missing_ok=True)
    datastores = vm.site.datastores
    for number in _NUMBERS:
        path = vm.file(f"-{number}.png")
        if not datastores.exists(path):
            datastores.files_of(path).replace(path.path, data)
            return path
    raise ScreenUnavailableError("the folder is full of screenshots")
