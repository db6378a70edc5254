"""The script that looks at a machine's screen: QEMU's own picture of it, as the thumbnail's pixels.

Thread model: as `script_call`.
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lab.faults import FaultName
from lab.hyperv_host.errors import INVALID_STATE, HypervError
from lab.hyperv_host.host import HypervHost
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.scripts_inventory import find_vm

_WIDTH_MOST, _HEIGHT_MOST = 1920, 1200
_PPM = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


def screen_scripts(host: HypervHost) -> dict[str, Script]:
    return {"vm_screen": Script(lambda given: _vm_screen(host, given), frozenset({"vm_id"}))}


def _vm_screen(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    machine = vm.machine
    if machine is None:
        raise ScriptStop("wmi-method", "GetVirtualSystemThumbnailImage", INVALID_STATE)
    if host.faults.take(FaultName.SCREEN_UNAVAILABLE, **vm.fault_fields):
        raise ScriptStop("no-screen", "0")
    with TemporaryDirectory(dir=host.site.run_folder) as folder:
        picture = Path(folder) / "screen.ppm"
        machine.qmp.execute("screendump", filename=str(picture))
        return _thumbnail(picture.read_bytes())


def _thumbnail(ppm: bytes) -> Document:
    """Scaled down to what the script asks for at most, each pixel one of the screen's."""
    found = _PPM.match(ppm)
    if found is None:
        raise HypervError("QEMU made no PPM picture")
    width, height = int(found[1]), int(found[2])
    screen = np.frombuffer(ppm, np.uint8, offset=found.end()).reshape(height, width, 3)
    rows = np.linspace(0, height - 1, min(height, _HEIGHT_MOST)).astype(int)
    columns = np.linspace(0, width - 1, min(width, _WIDTH_MOST)).astype(int)
    pixels = screen[rows][:, columns].astype(np.uint16)
    red, green, blue = pixels[:, :, 0], pixels[:, :, 1], pixels[:, :, 2]
    packed = (red >> 3 << 11 | green >> 2 << 5 | blue >> 3).astype("<u2")
    return {
        "width": len(columns),
        "height": len(rows),
        "pixels": base64.b64encode(packed.tobytes()).decode(),
    }
