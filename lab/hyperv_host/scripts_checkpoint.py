"""The scripts of a backup: checkpoints, reference points, changed ranges.

Thread model: as `script_call`; what takes time is a job.
"""

from __future__ import annotations

import base64
import struct
from functools import partial

from lab.faults import FaultName
from lab.hyperv_host.checkpoints import APPLICATION, CRASH
from lab.hyperv_host.errors import HypervError, ParameterError
from lab.hyperv_host.host import HypervHost
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.scripts_inventory import find_checkpoint, find_vm
from lab.hyperv_host.windows_path import WindowsPath

_NAME_CHARS_MAX = 100
_LEVELS = {"application": APPLICATION, "crash": CRASH}


def checkpoint_scripts(host: HypervHost) -> dict[str, Script]:
    by_id = frozenset({"checkpoint_id"})
    return {
        "create_checkpoint": Script(
            partial(_create, host), frozenset({"vm_id", "consistency", "backup_type"})
        ),
        "name_checkpoint": Script(partial(_name, host), by_id | {"marker"}),
        "convert_to_reference_point": Script(partial(_convert, host), by_id),
        "remove_checkpoint": Script(partial(_remove, host), by_id),
        "remove_reference_point": Script(
            partial(_remove_point, host), frozenset({"reference_point_id"})
        ),
        "changed_ranges": Script(
            partial(_changed_ranges, host), frozenset({"path", "limit_id", "offset", "length"})
        ),
    }


def _create(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    level = _LEVELS.get(given.text("consistency"))
    backup_type = given.text("backup_type")
    if level is None or backup_type not in ("copy", "full"):
        raise ScriptStop("wmi-method", "CreateSnapshot", ParameterError.wmi_return)
    if vm.doing:
        raise ScriptStop("wmi-method", "CreateSnapshot", 32775)
    job = host.start_checkpoint(vm, recovery=True, consistency=level, backup_type=backup_type)
    return {"job_id": job.job_id, "checkpoint_id": ""}


def _name(host: HypervHost, given: Parameters) -> Document:
    _, checkpoint = find_checkpoint(host, given.text("checkpoint_id"))
    marker = given.text("marker")
    if not 0 < len(marker) <= _NAME_CHARS_MAX:
        raise ScriptStop("wmi-method", "ModifySystemSettings", ParameterError.wmi_return)
    checkpoint.name = marker
    return {"job_id": ""}


def _convert(host: HypervHost, given: Parameters) -> Document:
    vm, checkpoint = find_checkpoint(host, given.text("checkpoint_id"))
    if not checkpoint.recovery:
        raise ScriptStop("wmi-method", "ConvertToReferencePoint", ParameterError.wmi_return)
    job = host.start_conversion(vm, checkpoint)
    return {"job_id": job.job_id, "reference_point_id": ""}


def _remove(host: HypervHost, given: Parameters) -> Document:
    try:
        vm, checkpoint = find_checkpoint(host, given.text("checkpoint_id"))
    except ScriptStop:
        return {"found": False, "job_id": ""}
    if not checkpoint.recovery:
        raise ScriptStop("not-recovery", checkpoint.name)
    return {"found": True, "job_id": host.start_removal(vm, checkpoint).job_id}


def _remove_point(host: HypervHost, given: Parameters) -> Document:
    point_id = given.text("reference_point_id")
    if all(one.point_id != point_id for one in host.reference_points()):
        return {"found": False, "job_id": ""}
    host.remove_reference_point(point_id)
    return {"found": True, "job_id": ""}


def _changed_ranges(host: HypervHost, given: Parameters) -> Document:
    offset, length = given.number("offset"), given.number("length")
    try:
        path = WindowsPath.parse(given.text("path"))
        areas = list(host.changes(path, given.text("limit_id"), offset, length))
    except HypervError as error:
        raise ScriptStop("wmi-method", "GetVirtualDiskChanges", error.wmi_return) from error
    if host.faults.take(FaultName.RCT_STUCK_REGION, path=str(path)):
        return {"processed_bytes": 0, "count": 0, "ranges": "", "job_id": ""}
    packed = b"".join(struct.pack("<QQ", *area) for area in areas)
    return {
        "processed_bytes": length,
        "count": len(areas),
        "ranges": base64.b64encode(packed).decode(),
        "job_id": "",
    }
