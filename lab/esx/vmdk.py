"""VMDK descriptors of an ESXi datastore: parse, print, and the files a virtual disk is made of.

A disk is a text descriptor `NAME.vmdk` with one extent beside it: `NAME-flat.vmdk`, the raw
bytes, or for a delta `NAME-00000N-delta.vmdk`, whose bytes over the parent are kept in the lab's
own sparse format (a qcow2 image). Like on ESXi the descriptor says which parent it needs.
Source: VMware Virtual Disk Format 1.1; design notes on vSphere, section 5 "VMDK descriptor".

Invariants: a descriptor is at most `DESCRIPTOR_BYTES_MAX` long and names files of its own folder
(the parent may be elsewhere on the datastore). Values, no I/O but `read_descriptor`.
"""

from __future__ import annotations

import re
import secrets
import uuid as uuids
from dataclasses import dataclass, replace
from enum import StrEnum

from lab.esx.datastore import Datastores
from lab.esx.datastore_path import DatastorePath
from lab.esx.errors import FileFaultError, InvalidPathError

DESCRIPTOR_BYTES_MAX = 64 * 1024
SECTOR_BYTES = 512
NO_PARENT_CID = "ffffffff"
_EXTENT = re.compile(r'RW (\d+) (\w+) "([^"]+)"(?: (\d+))?')
_SETTING = re.compile(r"([\w.]+)\s*=\s*\"?([^\"]*)\"?")
_UUID_HEX = re.compile(r"[0-9a-f]{32}")
_HEADS, _SECTORS = 255, 63


class ExtentKind(StrEnum):
    FLAT = "VMFS"
    DELTA = "SESPARSE"


_CREATE_TYPES = {ExtentKind.FLAT: "vmfs", ExtentKind.DELTA: "seSparse"}
# What other makers write for the same flat extent at offset 0.
_FLAT_EXTENTS = frozenset({"VMFS", "FLAT"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    capacity_bytes: int
    extent_name: str
    kind: ExtentKind
    uuid: str  # canonical text, 8-4-4-4-12
    content_id: str
    parent_content_id: str = NO_PARENT_CID
    parent_hint: str = ""
    adapter_type: str = "lsilogic"
    thin: bool = False
    change_track_name: str = ""

    def __post_init__(self) -> None:
        if self.capacity_bytes <= 0 or self.capacity_bytes % SECTOR_BYTES:
            raise FileFaultError(f"a disk cannot have {self.capacity_bytes} bytes")

    def text(self) -> str:
        """The descriptor as a host writes it."""
        parent = [f'parentFileNameHint="{self.parent_hint}"'] if self.parent_hint else []
        tracked = self.change_track_name
        lines = [
            "# Disk DescriptorFile",
            f"version={3 if tracked else 1}",
            'encoding="UTF-8"',
            f"CID={self.content_id}",
            f"parentCID={self.parent_content_id}",
            f'createType="{_CREATE_TYPES[self.kind]}"',
            *parent,
            "",
            "# Extent description",
            f'RW {self.capacity_bytes // SECTOR_BYTES} {self.kind} "{self.extent_name}"',
            "",
            *(["# Change Tracking File", f'changeTrackPath="{tracked}"', ""] if tracked else []),
            "# The Disk Data Base",
            "#DDB",
            "",
            *self._database(),
        ]
        return "\n".join(lines) + "\n"

    def _database(self) -> list[str]:
        values = {
            "adapterType": self.adapter_type,
            "geometry.cylinders": min(
                65535, self.capacity_bytes // SECTOR_BYTES // (_HEADS * _SECTORS)
            ),
            "geometry.heads": _HEADS,
            "geometry.sectors": _SECTORS,
            "longContentID": uuids.UUID(self.uuid).hex[:24] + self.content_id,
            "uuid": spaced_uuid(self.uuid),
            "virtualHWVersion": 19,
        }
        if self.thin:
            values["thinProvisioned"] = 1
        return [f'ddb.{name} = "{value}"' for name, value in values.items()]


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskFile:
    """A descriptor and where it is."""

    path: DatastorePath
    descriptor: Descriptor

    @property
    def extent_path(self) -> DatastorePath:
        return self.path.sibling(self.descriptor.extent_name)

    @property
    def parent_path(self) -> DatastorePath | None:
        hint = self.descriptor.parent_hint
        return self.path.folder.resolve(hint) if hint else None

    @property
    def track_path(self) -> DatastorePath:
        """Where the changes of a disk are tracked, whether they are or not."""
        return self.path.sibling(f"{self.path.name.removesuffix('.vmdk')}-ctk.vmdk")

    @property
    def own_files(self) -> tuple[DatastorePath, ...]:
        return (self.path, self.extent_path)


def new_uuid() -> str:
    """VMware's virtual disks start with its organisation's identifier."""
    return str(uuids.UUID(hex="6000c29" + secrets.token_hex(13)[:25]))


def new_content_id() -> str:
    return secrets.token_hex(4).replace("f", "e")  # never the mark of a missing parent


def spaced_uuid(uuid: str) -> str:
    """`60 00 C2 9x … -… `: sixteen bytes, a dash behind the eighth."""
    data = uuids.UUID(uuid).bytes
    return "-".join(" ".join(f"{byte:02x}" for byte in half) for half in (data[:8], data[8:]))


def flat_descriptor(
    name: str, capacity_bytes: int, *, thin: bool = True, uuid: str = ""
) -> Descriptor:
    """A new empty disk called `name` (without suffix)."""
    return Descriptor(
        capacity_bytes=capacity_bytes,
        extent_name=f"{name}-flat.vmdk",
        kind=ExtentKind.FLAT,
        uuid=uuid or new_uuid(),
        content_id=new_content_id(),
        thin=thin,
    )


def delta_descriptor(path: DatastorePath, parent: DiskFile) -> Descriptor:
    """The descriptor at `path` of an empty delta over `parent`."""
    near = parent.path.folder == path.folder
    return replace(
        parent.descriptor,
        extent_name=f"{path.name.removesuffix('.vmdk')}-delta.vmdk",
        kind=ExtentKind.DELTA,
        parent_content_id=parent.descriptor.content_id,
        parent_hint=parent.path.name if near else str(parent.path),
        content_id=new_content_id(),
    )


def parse_descriptor(text: str, what: str) -> Descriptor:
    """Raises FileFaultError naming `what` for anything that is not one flat or delta extent."""
    settings: dict[str, str] = {}
    extents = []
    for raw in text.splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if match := _EXTENT.fullmatch(line):
            extents.append(match)
        elif match := _SETTING.fullmatch(line):
            settings[match[1]] = match[2]
    if len(extents) != 1 or not settings.get("CID"):
        raise FileFaultError(f"{what} is not the descriptor of a disk", file=what)
    sectors, word, extent_name, offset = extents[0].groups()
    if word in _FLAT_EXTENTS and offset in (None, "0"):
        kind = ExtentKind.FLAT
    elif word == ExtentKind.DELTA:
        kind = ExtentKind.DELTA
    else:
        raise FileFaultError(f"{what} has an extent of type {word}", file=what)
    if "/" in extent_name or (kind is ExtentKind.DELTA) != ("parentFileNameHint" in settings):
        raise FileFaultError(f"{what} names files that cannot be its own", file=what)
    return Descriptor(
        capacity_bytes=int(sectors) * SECTOR_BYTES,
        extent_name=extent_name,
        kind=kind,
        uuid=_parse_uuid(settings.get("ddb.uuid", "")),
        content_id=settings["CID"],
        parent_content_id=settings.get("parentCID", NO_PARENT_CID),
        parent_hint=settings.get("parentFileNameHint", ""),
        adapter_type=settings.get("ddb.adapterType", "lsilogic"),
        thin=settings.get("ddb.thinProvisioned") == "1",
        change_track_name=settings.get("changeTrackPath", ""),
    )


def _parse_uuid(text: str) -> str:
    digits = text.replace(" ", "").replace("-", "").lower()
    return str(uuids.UUID(digits)) if _UUID_HEX.fullmatch(digits) else new_uuid()


def read_disk_file(datastores: Datastores, path: DatastorePath) -> DiskFile:
    """Raises FileMissingError; FileFaultError when it is no disk or its extent is missing."""
    try:
        text = datastores.read_text(path, DESCRIPTOR_BYTES_MAX)
    except InvalidPathError as error:
        raise FileFaultError(f"{path} is not the descriptor of a disk", file=str(path)) from error
    disk = DiskFile(path=path, descriptor=parse_descriptor(text, str(path)))
    extent = datastores.stat(disk.extent_path)
    if extent is None:
        raise FileFaultError(f"{path} has lost {disk.extent_path}", file=str(path))
    flat = disk.descriptor.kind is ExtentKind.FLAT
    if flat and extent.size_bytes != disk.descriptor.capacity_bytes:
        raise FileFaultError(
            f"{disk.extent_path} has {extent.size_bytes} bytes,"
            f" its descriptor says {disk.descriptor.capacity_bytes}",
            file=str(path),
        )
    return disk
