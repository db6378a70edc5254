"""The scripts around iSCSI disks, shares, and disk files that are about to be written.

Thread model: as `script_call`.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from lab.hyperv_host.errors import NotFoundError
from lab.hyperv_host.host import HypervHost
from lab.hyperv_host.iscsi import INITIATOR, IscsiInitiator, Portal
from lab.hyperv_host.samba import Samba, Share
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.scripts_inventory import disk_chain
from lab.hyperv_host.scripts_machine import checked_marker
from lab.hyperv_host.windows_path import WindowsPath

OUR_FOLDER = WindowsPath("C:\\ProgramData\\Holdfast")


@dataclass(frozen=True, slots=True, kw_only=True)
class OurShare:
    marker: str
    name: str
    path: WindowsPath


@dataclass(slots=True)
class OurFiles:
    folders: list[WindowsPath] = field(default_factory=list)  # the outermost first
    files: list[WindowsPath] = field(default_factory=list)


@dataclass(slots=True)
class Made:
    """What the scripts have made and others of them take away."""

    portals: set[Portal] = field(default_factory=set)
    shares: list[OurShare] = field(default_factory=list)
    disk_files: dict[str, OurFiles] = field(default_factory=dict)  # by marker


def storage_scripts(host: HypervHost, iscsi: IscsiInitiator, samba: Samba) -> dict[str, Script]:
    made = Made()
    target = frozenset({"portal", "port", "target"})
    return {
        "connect_iscsi": Script(
            partial(_connect, iscsi, made), target | {"chap_user", "chap_secret"}
        ),
        "disconnect_iscsi": Script(partial(_disconnect, iscsi, made), target),
        "online_disk": Script(
            partial(_online, host, iscsi), frozenset({"serial", "marker", "mount"})
        ),
        "offline_disk": Script(partial(_offline, host, iscsi), frozenset({"serial", "marker"})),
        "share_folder": Script(
            partial(_share, host, samba, made), frozenset({"marker", "folder", "writable"})
        ),
        "unshare_folder": Script(partial(_unshare, samba, made), frozenset({"marker"})),
        "list_shares": Script(partial(_shares, made), frozenset({"prefix"})),
        "make_disk_files": Script(
            partial(_make_files, host, made), frozenset({"marker", "folder", "names"})
        ),
        "remove_disk_files": Script(
            partial(_remove_files, host, made), frozenset({"marker", "keep"})
        ),
        "list_disk_files": Script(partial(_list_files, made), frozenset({"prefix"})),
    }


# ---------------------------------------------------------------------- iSCSI


def _portal(given: Parameters) -> Portal:
    return Portal(address=given.text("portal"), port=given.number("port"))


def _connect(iscsi: IscsiInitiator, made: Made, given: Parameters) -> Document:
    portal, target = _portal(given), given.text("target")
    shown = iscsi.targets(portal)
    made.portals.add(portal)
    if target not in shown:
        raise ScriptStop("target-not-found", target)
    iscsi.connect(portal, target, given.text("chap_user"), given.text("chap_secret"))
    return {"initiator": INITIATOR, "connected": iscsi.connected(target)}


def _disconnect(iscsi: IscsiInitiator, made: Made, given: Parameters) -> Document:
    found = iscsi.disconnect(given.text("target"))
    made.portals.discard(_portal(given))
    return {"found": found}


def _online(host: HypervHost, iscsi: IscsiInitiator, given: Parameters) -> Document:
    folder = OUR_FOLDER.joined("volumes", checked_marker(given))
    try:
        _, disk = iscsi.disk(given.text("serial"))
        if not given.flag("mount"):
            return {"disk_number": disk.number, "folder": ""}
    except NotFoundError as error:
        raise ScriptStop("disk-not-found", given.text("serial")) from error
    place = host.volumes.place(folder)
    place.mkdir(parents=True, exist_ok=True)
    try:
        iscsi.bring_online(given.text("serial"), place)
    except NotFoundError as error:
        raise ScriptStop("volume-not-found", given.text("serial")) from error
    return {"disk_number": disk.number, "folder": str(folder)}


def _offline(host: HypervHost, iscsi: IscsiInitiator, given: Parameters) -> Document:
    folder = OUR_FOLDER.joined("volumes", checked_marker(given))
    found = True
    try:
        iscsi.take_offline(given.text("serial"))
    except NotFoundError:
        found = False
    with contextlib.suppress(FileNotFoundError):
        host.volumes.place(folder).rmdir()
    return {"found": found}


# ---------------------------------------------------------------------- shares


def _share(host: HypervHost, samba: Samba, made: Made, given: Parameters) -> Document:
    marker, path = checked_marker(given), WindowsPath.parse(given.text("folder"))
    if not host.volumes.place(path).is_dir():
        raise ScriptStop("folder-not-found", str(path))
    for share in made.shares:
        if share.marker == marker and share.path.same(path):
            return {"share": share.name}
    name = f"holdfast-{uuid.uuid4().hex[:16]}$"
    folder = host.volumes.place(path)
    samba.add(Share(name=name, folder=folder, writable=given.flag("writable")))
    made.shares.append(OurShare(marker=marker, name=name, path=path))
    return {"share": name}


def _unshare(samba: Samba, made: Made, given: Parameters) -> Document:
    marker = checked_marker(given)
    gone = [share for share in made.shares if share.marker == marker]
    for share in gone:
        samba.remove(share.name)
        made.shares.remove(share)
    return {"removed": len(gone)}


def _shares(made: Made, given: Parameters) -> Document:
    prefix = given.text("prefix")
    return {
        "shares": [
            {"marker": share.marker, "share": share.name, "path": str(share.path)}
            for share in made.shares
            if share.marker.startswith(prefix)
        ]
    }


# ---------------------------------------------------------------------- disk files


def _make_files(host: HypervHost, made: Made, given: Parameters) -> Document:
    marker, folder = checked_marker(given), WindowsPath.parse(given.text("folder"))
    if folder.drive not in host.volumes.drives:
        raise ScriptStop("bad-folder", str(folder))
    if marker not in made.disk_files:
        ours = made.disk_files[marker] = OurFiles()
        for count in range(1, len(folder.parts) + 1):
            path = WindowsPath(f"{folder.drive}:\\").joined(*folder.parts[:count])
            if not host.volumes.place(path).is_dir():
                host.volumes.place(path).mkdir()
                ours.folders.append(path)
        for name in given.texts("names"):
            ours.files.append(_new_file(host, folder, name))
    return {
        "paths": [str(path) for path in made.disk_files[marker].files],
        "free_bytes": shutil.disk_usage(host.volumes.place(folder)).free,
    }


def _new_file(host: HypervHost, folder: WindowsPath, name: str) -> WindowsPath:
    number = 1
    while True:
        path = folder.joined(f"{name}-{number}.vhdx" if number > 1 else f"{name}.vhdx")
        try:
            host.volumes.place(path).touch(exist_ok=False)
        except FileExistsError:
            number += 1
            continue
        return path


def _remove_files(host: HypervHost, made: Made, given: Parameters) -> Document:
    marker, removed = checked_marker(given), 0
    ours = made.disk_files.get(marker, OurFiles())
    if not given.flag("keep"):
        notes = {
            str(file["path"]).lower(): vm.settings.notes
            for vm in host.vms()
            for drive in vm.settings.drives
            if drive.path is not None
            for file in disk_chain(host, drive.path)
        }
        for path in ours.files:
            if marker in notes.get(str(path).lower(), ""):
                raise ScriptStop("still-attached", str(path))
        for path in ours.files:
            place = host.volumes.place(path)
            if str(path).lower() not in notes and place.exists():
                place.unlink()
                removed += 1
        for folder in reversed(ours.folders):
            _remove_if_empty(host.volumes.place(folder))
    made.disk_files.pop(marker, None)
    return {"removed": removed}


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_dir():
        return
    for inside in (*(each for each in folder.iterdir() if each.is_dir()), folder):
        if not any(inside.iterdir()):
            inside.rmdir()


def _list_files(made: Made, given: Parameters) -> Document:
    return {"markers": [each for each in made.disk_files if each.startswith(given.text("prefix"))]}
