"""The hardware document of a recovery point, as the VM of the hypervisor that is to make it.

A document of the same hypervisor is read as it is; of the other, translated (`translation`). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from appliance.targets import hyperv_from_vsphere, vsphere_from_hyperv
from appliance.targets.contract import WantedDisk
from appliance.targets.translation import ForeignPointError, NativeVm
from hyperv.config_capture import Capture
from vmware.captured_part import DocumentError
from vmware.captured_vm import CapturedVm


def for_hyperv(hardware: Mapping[str, Any], disks: Sequence[WantedDisk] = ()) -> NativeVm[Capture]:
    """Without `disks` the VM alone is asked for: the same as with them, but for its disks.

    Raises: ForeignPointError, CannotTranslateError, UsageError.
    """
    if "schema" not in hardware:
        return NativeVm(vm=capture_of(hardware), disks=tuple(disks), is_foreign=False)
    try:
        captured = CapturedVm.parse(hardware)
    except DocumentError as error:
        raise ForeignPointError(str(error)) from error
    return hyperv_from_vsphere.translate(captured, disks)


def for_vsphere(
    hardware: Mapping[str, Any], disks: Sequence[WantedDisk] = ()
) -> NativeVm[CapturedVm]:
    """Raises: ForeignPointError, CannotTranslateError; DocumentError: what vSphere said is not
    understood."""
    if "schema" in hardware:
        return NativeVm(vm=CapturedVm.parse(hardware), disks=tuple(disks), is_foreign=False)
    return vsphere_from_hyperv.translate(capture_of(hardware), disks)


def capture_of(hardware: Mapping[str, Any]) -> Capture:
    """The configuration that a Hyper-V point holds. Raises ForeignPointError."""
    known = {name: value for name, value in hardware.items() if name in Capture.model_fields}
    try:
        return Capture.model_validate(known)
    except ValidationError as error:
        raise ForeignPointError("the point holds no configuration of a Hyper-V VM") from error
