"""The scripts that only look: host, machines, checkpoints, reference points, jobs.

Each function answers for the product's script of its name; what this host has none of is told as a
Windows host without it would. Thread model: as `script_call`.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial

from lab.hyperv_host.errors import HypervError, NotFoundError
from lab.hyperv_host.host import VM_FOLDER, HypervHost
from lab.hyperv_host.iscsi import IscsiInitiator
from lab.hyperv_host.jobs import Job
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.vhdx_chain import CHAIN_FILES_MAX, ChainFile, parent_path
from lab.hyperv_host.vhdx_disk import LogNotReplayedError, VhdxDisk
from lab.hyperv_host.virtual_machine import OK, Checkpoint, HypervVm
from lab.hyperv_host.vm_settings import SECURE_BOOT_TEMPLATES, Adapter, Drive, VmState
from lab.hyperv_host.windows_path import WindowsPath

_OS_VERSION = "10.0.20348"
_VM_VERSIONS = ["8.0", "8.1", "8.2", "8.3", "9.0", "9.1", "9.2", "9.3", "10.0"]
_INTEGRATION = {
    "6c09bb55-d683-4da0-8931-c9bf705f6480": False,
    "84eaae65-2f2e-45f5-9bb5-0e857dc8eb47": True,
    "2a34b1c2-fd73-4043-8a5b-dd2159bc743f": True,
    "9f8233ac-be49-4c79-8ee3-e7e1985b2077": True,
    "2497f4de-e9fa-4204-80e4-4b75c46419c0": True,
}
_VSS = "5ced1297-4598-4915-a5fc-ad21bb4d02a4"
_NO_CONTACT = 12


def inventory_scripts(host: HypervHost, iscsi: IscsiInitiator, user: str) -> dict[str, Script]:
    vm_id = frozenset({"vm_id"})
    return {
        "host_facts": Script(lambda _: _host_facts(host, iscsi, user), frozenset()),
        "list_vms": Script(partial(_list_vms, host), vm_id),
        "capture_vm": Script(partial(_capture_vm, host), vm_id),
        "vm_state": Script(partial(_vm_state, host), vm_id),
        "list_switches": Script(lambda _: _switches(host), frozenset()),
        "list_cluster": Script(lambda _: _cluster(host), frozenset()),
        "list_checkpoints": Script(partial(_list_checkpoints, host), vm_id),
        "list_reference_points": Script(partial(_list_reference_points, host), vm_id),
        "checkpoint_disks": Script(partial(_checkpoint_disks, host), frozenset({"checkpoint_id"})),
        "job_state": Script(partial(_job_state, host), frozenset({"job_id"})),
    }


def find_vm(host: HypervHost, vm_id: str) -> HypervVm:
    try:
        return host.vm(vm_id)
    except NotFoundError as error:
        raise ScriptStop("vm-not-found", vm_id) from error


def find_checkpoint(host: HypervHost, instance_id: str) -> tuple[HypervVm, Checkpoint]:
    try:
        return host.checkpoint(instance_id)
    except NotFoundError as error:
        raise ScriptStop("checkpoint-not-found", instance_id) from error


def _host_facts(host: HypervHost, iscsi: IscsiInitiator, user: str) -> Document:
    return {
        "computer_name": host.computer,
        "fqdn": host.computer.lower(),
        "domain": "WORKGROUP",
        "domain_joined": False,
        "os_version": _OS_VERSION,
        "os_caption": "Microsoft Windows Server 2022 Standard (practice host)",
        "server": True,
        "powershell_version": "5.1.20348.1",
        "user": f"{host.computer}\\{user}",
        "administrator": True,
        "hyperv": True,
        "reference_points": True,
        "diskshadow": True,
        "vm_versions": _VM_VERSIONS,
        "vm_folder": str(VM_FOLDER),
        "disk_folder": str(VM_FOLDER.joined("Virtual Hard Disks")),
        "cluster": host.cluster.name if host.cluster else "",
        "iscsi_service": "running" if iscsi.started else "stopped",
        "processors": 8,
        "memory_bytes": 32 << 30,
        "admin_shares": True,
    }


def _list_vms(host: HypervHost, given: Parameters) -> Document:
    wanted = given.text("vm_id")
    vms = [find_vm(host, wanted)] if wanted else host.vms()
    return {"vms": [_listed(host, vm) for vm in vms]}


def _listed(host: HypervHost, vm: HypervVm) -> Document:
    settings = vm.settings
    return {
        "id": settings.vm_id,
        "name": settings.name,
        "state": int(vm.state),
        "generation": settings.generation,
        "version": settings.version,
        "clustered": _clustered(host, vm),
        "operational_status": _operational_status(vm),
        "processors": settings.processors,
        "memory_bytes": settings.memory.startup_bytes,
        "folder": str(settings.folder),
        "checkpoint_type": settings.checkpoint_type,
        "parent_checkpoint": vm.checkpoints[-1].checkpoint_id.lower() if vm.checkpoints else "",
        "replication_mode": 0,
        "tpm": settings.tpm,
        "shielded": False,
        "vss_status": _vss_status(vm),
        "fibre_channel": 0,
        "notes": settings.notes,
        "disks": [_listed_drive(host, vm, drive) for drive in settings.drives],
    }


def _listed_drive(host: HypervHost, vm: HypervVm, drive: Drive) -> Document:
    listed = {
        "attachment": vm.settings.attachment(drive),
        "controller": str(drive.controller),
        "controller_number": drive.controller_number,
        "location": drive.location,
        "pass_through": drive.path is None,
        "shared": False,
    }
    if drive.path is None:
        return listed | _unknown_file("") | {"error": "pass-through"}
    return listed | disk_file(host, drive.path)


def _operational_status(vm: HypervVm) -> list[int]:
    return [OK, vm.doing] if vm.doing else [OK]


def _vss_status(vm: HypervVm) -> int:
    if not vm.settings.vss_service:
        return 0
    guest = vm.guest
    return OK if guest is not None and guest.info.tools_running else _NO_CONTACT


def _unknown_file(path: str) -> Document:
    return {
        "path": path,
        "format": "",
        "type": "",
        "virtual_disk_id": "",
        "size_bytes": 0,
        "file_size_bytes": 0,
        "logical_sector_bytes": 0,
        "physical_sector_bytes": 0,
        "parent_path": "",
        "error": "",
    }


def disk_file(host: HypervHost, path: WindowsPath) -> Document:
    """What Get-VHD tells of a file."""
    document = _unknown_file(str(path))
    try:
        place = host.volumes.existing_file(path)
        disk = VhdxDisk(place, writable=False)
    except (HypervError, LogNotReplayedError, OSError) as error:
        return document | {"error": str(error)}
    try:
        geometry = disk.geometry
        parent = ""
        if geometry.differencing:
            parent = str(parent_path(host.volumes, ChainFile(path, disk)))
        kind = "differencing" if parent else "fixed" if geometry.fixed else "dynamic"
        return document | {
            "format": "vhdx",
            "type": kind,
            "virtual_disk_id": str(geometry.disk_id),
            "size_bytes": geometry.size_bytes,
            "file_size_bytes": disk.file_bytes,
            "logical_sector_bytes": geometry.logical_sector_bytes,
            "physical_sector_bytes": geometry.physical_sector_bytes,
            "parent_path": parent,
        }
    except HypervError as error:
        return document | {"error": str(error)}
    finally:
        disk.close()


def disk_chain(host: HypervHost, path: WindowsPath) -> list[Document]:
    chain: list[Document] = []
    following = str(path)
    while following and len(chain) < CHAIN_FILES_MAX:
        chain.append(disk_file(host, WindowsPath.parse(following)))
        following = str(chain[-1]["parent_path"])
    return chain


def _capture_vm(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    settings = vm.settings
    second = settings.generation == 2
    return {
        "id": settings.vm_id,
        "name": settings.name,
        "notes": settings.notes,
        "generation": settings.generation,
        "version": settings.version,
        "identity": {
            "bios_guid": settings.identity.bios_guid,
            "bios_serial": settings.identity.bios_serial,
            "board_serial": settings.identity.board_serial,
            "chassis_serial": settings.identity.chassis_serial,
            "chassis_asset_tag": settings.identity.chassis_asset_tag,
        },
        "processor": {
            "count": settings.processors,
            "reserve": 0,
            "limit": 100,
            "weight": 100,
            "nested": settings.nested,
            "compatibility": False,
        },
        "memory": {
            "startup_bytes": settings.memory.startup_bytes,
            "minimum_bytes": settings.memory.minimum_bytes,
            "maximum_bytes": settings.memory.maximum_bytes,
            "dynamic": settings.memory.dynamic,
            "buffer": 20,
            "weight": 50,
        },
        "firmware": _firmware(vm) if second else None,
        "bios": None if second else {"startup_order": [1, 2, 3, 0], "num_lock": False},
        "security": {"tpm": settings.tpm, "shielded": False, "encrypt_state": False},
        "checkpoint_type": settings.checkpoint_type,
        "automatic_checkpoints": settings.automatic_checkpoints,
        "start_action": settings.start_action,
        "start_delay_s": settings.start_delay_s,
        "stop_action": settings.stop_action,
        "critical_error_action": 1,
        "clustered": _clustered(host, vm),
        "adapters": [_adapter(host, vm, one) for one in settings.adapters],
        "controllers": [
            *([] if second else [{"type": "ide", "number": number} for number in (0, 1)]),
            *({"type": "scsi", "number": number} for number in range(len(settings.scsi_ids))),
        ],
        "dvds": []
        if second or not settings.has_dvd
        else [{"controller": "ide", "controller_number": 1, "location": 0, "path": ""}],
        "integration": [
            *({"id": one, "enabled": enabled} for one, enabled in _INTEGRATION.items()),
            {"id": _VSS, "enabled": settings.vss_service},
        ],
    }


def _firmware(vm: HypervVm) -> Document:
    settings = vm.settings
    first = settings.boot_first
    drives = sorted(settings.drives, key=lambda drive: drive.name != first)
    template = settings.secure_boot_template if settings.secure_boot else ""
    return {
        "secure_boot": settings.secure_boot,
        "secure_boot_template": template,
        "secure_boot_template_id": SECURE_BOOT_TEMPLATES.get(template, ""),
        "console_mode": 0,
        "pause_after_boot_failure": False,
        "boot_order": [
            {"type": 1, "path": "", "attachment": settings.attachment(drive)} for drive in drives
        ],
    }


def _adapter(host: HypervHost, vm: HypervVm, adapter: Adapter) -> Document:
    switch_id = host.switch(adapter.switch).switch_id if adapter.switch else ""
    first = adapter == vm.settings.adapters[0]
    return {
        "id": vm.settings.adapter_instance(adapter),
        "name": adapter.name,
        "legacy": adapter.legacy,
        "mac": adapter.mac if vm.state is VmState.RUNNING or not adapter.dynamic_mac else "0" * 12,
        "dynamic_mac": adapter.dynamic_mac,
        "switch_name": adapter.switch,
        "switch_id": switch_id,
        "connected": bool(adapter.switch),
        "vlan_mode": 1 if adapter.vlan_id else 0,
        "vlan_id": adapter.vlan_id,
        "mac_spoofing": False,
        "dhcp_guard": False,
        "router_guard": False,
        "device_naming": False,
        "addresses": vm.addresses if first else [],
    }


def _vm_state(host: HypervHost, given: Parameters) -> Document:
    vm = find_vm(host, given.text("vm_id"))
    running = vm.state is VmState.RUNNING
    return {
        "id": vm.settings.vm_id,
        "name": vm.settings.name,
        "state": int(vm.state),
        "operational_status": _operational_status(vm),
        "heartbeat": vm.heartbeat,
        "addresses": vm.addresses,
        "guest_name": vm.guest_name,
        "disk_paths": [str(drive.path or "") for drive in vm.settings.drives],
        "uptime_s": int(time.monotonic() - vm.started_at) if running else 0,
    }


def _switches(host: HypervHost) -> Document:
    return {
        "switches": [
            {"id": one.switch_id, "name": one.name, "type": one.kind} for one in host.switches
        ]
    }


def _cluster(host: HypervHost) -> Document:
    cluster = host.cluster
    if cluster is None:
        return {"name": "", "nodes": [], "vms": [], "volumes": []}
    return {
        "name": cluster.name,
        "nodes": [{"name": name, "state": int(state)} for name, state in cluster.nodes()],
        "vms": [
            {"vm_id": role.vm_id, "name": role.name, "owner": role.owner}
            for role in cluster.roles()
        ],
        "volumes": [
            {
                "name": volume.name,
                "owner": volume.coordinator,
                "path": str(volume.path),
                "redirected": False,
            }
            for volume in cluster.volumes()
        ],
    }


def _clustered(host: HypervHost, vm: HypervVm) -> bool:
    roles = host.cluster.roles() if host.cluster else []
    return any(role.vm_id == vm.settings.vm_id for role in roles)


def _list_checkpoints(host: HypervHost, given: Parameters) -> Document:
    wanted = given.text("vm_id").lower()
    return {
        "checkpoints": [
            {
                "id": checkpoint.instance_id,
                "vm_id": vm.settings.vm_id,
                "name": checkpoint.name,
                "kind": "recovery" if checkpoint.recovery else "standard",
                "parent": checkpoint.parent_id,
                "created_at": datetime.fromtimestamp(checkpoint.created_at, UTC).isoformat(),
            }
            for vm in host.vms()
            if not wanted or vm.settings.vm_id == wanted
            for checkpoint in vm.checkpoints
        ]
    }


def _list_reference_points(host: HypervHost, given: Parameters) -> Document:
    wanted = given.text("vm_id").lower()
    points = [one for one in host.reference_points() if not wanted or one.vm_id == wanted]
    paths = {
        vm.settings.attachment(drive): drive.path
        for vm in host.vms()
        for drive in vm.settings.drives
    }
    listed = []
    for point in points:
        disks = []
        for attachment, rct_id in point.disks:
            path = paths.get(attachment)
            disk_id = disk_file(host, path)["virtual_disk_id"] if path else ""
            disks.append(
                {
                    "attachment": attachment,
                    "rct_id": rct_id,
                    "path": str(path or ""),
                    "virtual_disk_id": disk_id,
                }
            )
        listed.append(
            {
                "id": point.point_id,
                "vm_id": point.vm_id,
                "type": 2,
                "consistency": point.consistency,
                "disks": disks,
            }
        )
    return {"reference_points": listed}


def _checkpoint_disks(host: HypervHost, given: Parameters) -> Document:
    vm, checkpoint = find_checkpoint(host, given.text("checkpoint_id"))
    disks = []
    for drive in vm.settings.drives:
        if drive.name not in checkpoint.frozen:
            continue
        chain = disk_chain(host, checkpoint.frozen[drive.name])
        disks.append(
            {
                "attachment": vm.settings.attachment(drive, checkpoint.checkpoint_id),
                "virtual_disk_id": chain[0]["virtual_disk_id"],
                "controller": str(drive.controller),
                "controller_number": drive.controller_number,
                "location": drive.location,
                "chain": chain,
            }
        )
    return {
        "checkpoint_id": checkpoint.instance_id,
        "vm_id": vm.settings.vm_id,
        "name": checkpoint.name,
        "kind": "recovery" if checkpoint.recovery else "other",
        "configuration": [str(path) for path in checkpoint.configuration],
        "disks": disks,
    }


def _job_state(host: HypervHost, given: Parameters) -> Document:
    job = host.jobs.find(given.text("job_id"))
    found = job is not None
    job = job or Job("", "")
    return {
        "found": found,
        "state": int(job.state) if found else 0,
        "percent": job.percent,
        "error_code": job.error_code,
        "error": job.error,
        "description": job.description,
        "checkpoints": list(job.checkpoints),
        "reference_points": list(job.reference_points),
    }
