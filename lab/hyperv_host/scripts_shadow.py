"""The scripts of shadow copies.

A shadow copy is a copy of the virtual disks and configurations of a volume, taken in one moment
while the machines on it stand still, and with the file systems of the machine that is asked about
frozen: what the host's VSS shows, without its copy-on-write. The disks of that machine get the
`-AutoRecovery` child that the Hyper-V writer leaves.

Thread model: as `script_call`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from lab.guests.disk import copy_sparse
from lab.hyperv_host.checkpoints import APPLICATION, quiesced
from lab.hyperv_host.errors import HypervError, NotFoundError
from lab.hyperv_host.host import HypervHost
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.scripts_inventory import disk_file, find_vm
from lab.hyperv_host.scripts_machine import checked_marker
from lab.hyperv_host.scripts_storage import OUR_FOLDER
from lab.hyperv_host.vhdx_chain import CHAIN_FILES_MAX, close_chain, create_child, open_chain
from lab.hyperv_host.virtual_machine import HypervVm
from lab.hyperv_host.windows_path import WindowsPath

Shadows = dict[str, list[str]]  # ids by marker
_COPIED = (".vhdx", ".avhdx", ".vhd", ".avhd", ".vmcx", ".vmrs", ".vmgs")
_RECOVERED = "-AutoRecovery.avhdx"


def shadow_scripts(host: HypervHost) -> dict[str, Script]:
    made: Shadows = {}
    return {
        "create_shadow": Script(
            partial(_create_shadow, host, made), frozenset({"marker", "vm_id", "volumes"})
        ),
        "shadow_disks": Script(partial(_shadow_disks, host), frozenset({"disks"})),
        "list_shadows": Script(partial(_shadows, host, made), frozenset({"prefix"})),
        "remove_shadow": Script(partial(_remove_shadow, host, made), frozenset({"marker"})),
    }


def _shadow_folder(marker: str) -> WindowsPath:
    return OUR_FOLDER.joined("shadows", marker)


def _create_shadow(host: HypervHost, made: Shadows, given: Parameters) -> Document:
    marker = checked_marker(given)
    folder = host.volumes.place(_shadow_folder(marker))
    if folder.exists():
        raise ScriptStop("marker-in-use", str(_shadow_folder(marker)))
    asked = find_vm(host, given.text("vm_id"))
    volumes = given.texts("volumes")
    for name in volumes:
        if len(name) != 3 or name[1:] != ":\\" or name[0] not in host.volumes.drives:
            raise ScriptStop("bad-volume", name)
    folder.mkdir(parents=True)
    try:
        with contextlib.ExitStack() as still:
            still.enter_context(asked.operation())
            still.enter_context(quiesced(asked, APPLICATION))
            for vm in host.vms():
                if vm.machine is not None:
                    still.enter_context(vm.machine.stunned())
            for place, name in enumerate(volumes):
                _copy_volume(host.volumes.folder / name[0], folder / f"v{place}")
            if asked.guest is not None:
                asked.backups_told.append("full")  # diskshadow knows no other
            _recover(host, asked, [name[0] for name in volumes], _shadow_folder(marker))
    except HypervError as error:
        raise ScriptStop("diskshadow", f"The writer reported an error. {error}") from error
    ids = [str(uuid.uuid4()) for _ in volumes]
    made[marker] = ids
    shadows = [
        {
            "shadow_id": shadow_id,
            "volume": name,
            "exposed": str(_shadow_folder(marker).joined(f"v{place}")),
        }
        for place, (shadow_id, name) in enumerate(zip(ids, volumes, strict=True))
    ]
    return {"marker": marker, "shadows": shadows}


def _copy_volume(volume: Path, target: Path) -> None:
    """What lies on the volume itself; mounts in it are volumes of their own."""
    target.mkdir()
    for here, folders, files in os.walk(volume):
        folders[:] = [
            one for one in folders if one != "Holdfast" and not os.path.ismount(Path(here, one))
        ]
        for name in files:
            if name.lower().endswith(_COPIED):
                copy = target / Path(here, name).relative_to(volume)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy_sparse(Path(here, name), copy)


def _shadows(host: HypervHost, made: Shadows, given: Parameters) -> Document:
    prefix, found = given.text("prefix"), []
    for marker, ids in made.items():
        if marker.startswith(prefix):
            folder = host.volumes.place(_shadow_folder(marker))
            created = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat()
            found.append({"marker": marker, "created_at": created, "shadow_ids": ids})
    return {"shadows": found}


def _remove_shadow(host: HypervHost, made: Shadows, given: Parameters) -> Document:
    marker = checked_marker(given)
    ids = made.pop(marker, [])
    shutil.rmtree(host.volumes.place(_shadow_folder(marker)), ignore_errors=True)
    return {"removed": len(ids)}


def _recover(host: HypervHost, vm: HypervVm, drives: list[str], folder: WindowsPath) -> None:
    """Put the writer's child over the copies of the machine's disks."""
    for drive in vm.settings.drives:
        if drive.path is None or drive.path.drive not in drives:
            continue
        copy = folder.joined(f"v{drives.index(drive.path.drive)}", *drive.path.parts)
        files = open_chain(host.volumes, copy, writable=False)
        try:
            child = create_child(host.volumes, copy.folder.joined(copy.stem + _RECOVERED), files[0])
            child.disk.close()
        finally:
            close_chain(files)


def _shadow_disks(host: HypervHost, given: Parameters) -> Document:
    return {"disks": [_shadow_disk(host, disk) for disk in given.records("disks")]}


def _shadow_disk(host: HypervHost, given: Parameters) -> Document:
    path = WindowsPath.parse(given.text("path"))
    try:
        place = host.volumes.existing(path)
    except NotFoundError as error:
        raise ScriptStop("disk-not-found", str(path)) from error
    for other in sorted(place.parent.iterdir()):
        if other.name.endswith(_RECOVERED):
            recovered = path.folder.joined(other.name)
            parent = str(disk_file(host, recovered)["parent_path"])
            if parent.rpartition("\\")[2].lower() == path.name.lower():
                path = recovered
    chain: list[Document] = []
    following = str(path)
    while following and len(chain) < CHAIN_FILES_MAX:
        here = WindowsPath.parse(following)
        chain.append(disk_file(host, here))
        following = str(chain[-1]["parent_path"])
        if following:
            beside = here.folder.joined(following.rpartition("\\")[2])
            following = str(beside) if host.volumes.place(beside).exists() else following
    return {
        "attachment": given.text("attachment"),
        "virtual_disk_id": chain[0]["virtual_disk_id"],
        "controller": given.text("controller"),
        "controller_number": given.number("controller_number"),
        "location": given.number("location"),
        "chain": chain,
    }
