"""VMDK descriptors: the small text file that says of which extents a virtual disk is made.

Data path: the datastore HTTPS transport reads one to learn the name of the flat extent; restores
and exports write them. Text from a datastore is untrusted: size, lines, extents and every number
are bounded, and no name in it is used as a path before the caller has checked it.

Thread model: values and pure functions.
Source: VMware Virtual Disk Format 5.0 ("The Descriptor File"), design notes section 5.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field

from vmware.errors import VsphereError

MAX_DESCRIPTOR_BYTES = 64 << 10  # a few hundred bytes are usual
SECTOR_BYTES = 512
NO_PARENT = 0xFFFFFFFF

_MAX_EXTENTS = 256
_MAX_DATABASE = 256
_MAX_SECTORS = (64 << 40) // SECTOR_BYTES  # vSphere ends at 62 TiB
_MAX_TEXT = 1024  # characters of one value
_FIRST_LINE = "# Disk DescriptorFile"
_ENCODINGS = {  # what VMware products write, in Python's names
    "utf-8": "utf-8",
    "us-ascii": "ascii",
    "windows-1252": "cp1252",
    "iso-8859-1": "latin-1",
    "shift_jis": "shift_jis",
    "gbk": "gbk",
    "big5": "big5",
}
_ENCODING = re.compile(rb'^\s*encoding\s*=\s*"?([A-Za-z0-9_-]{1,32})"?\s*$', re.MULTILINE)
_EXTENT = re.compile(
    r'(RW|RDONLY|NOACCESS)\s+([0-9]{1,20})\s+([A-Za-z0-9]{1,32})(?:\s+"([^"]+)"(?:\s+([0-9]{1,20}))?)?'
)
_PAIR = re.compile(r'([A-Za-z0-9_.-]{1,128})\s*=\s*(?:"([^"]*)"|([^"\s]+))')
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class VmdkError(VsphereError):
    """A VMDK is malformed or of a kind that is not supported; the message says which and where."""

    code = "vsphere.vmdk"


@dataclass(frozen=True, slots=True, kw_only=True)
class VmdkExtent:
    """One extent line. `kind` is VMFS, FLAT, SPARSE, VMFSSPARSE, SESPARSE, VMFSRDM, ZERO, …"""

    access: str  # RW, RDONLY or NOACCESS
    sectors: int
    kind: str
    file_name: str | None  # as it stands there; untrusted
    start_sector: int | None = None  # in that file, of FLAT

    @property
    def size_bytes(self) -> int:
        return self.sectors * SECTOR_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    version: int
    cid: int
    parent_cid: int
    create_type: str
    extents: tuple[VmdkExtent, ...]
    parent_file_name: str | None = None
    change_track_path: str | None = None
    database: tuple[tuple[str, str], ...] = field(default=())  # `ddb.` lines, without that prefix

    @property
    def size_bytes(self) -> int:
        return sum(extent.size_bytes for extent in self.extents)


def parse_descriptor(data: bytes) -> Descriptor:
    """Parse a whole descriptor; zero bytes after its end are left out.

    Raises:
        VmdkError: not a descriptor, a line that cannot be understood, or a bound was passed.
    """
    lines = _text(data).splitlines()
    if not lines or not lines[0].lower().startswith(_FIRST_LINE.lower()):
        raise VmdkError("not a VMDK descriptor")
    extents: list[VmdkExtent] = []
    header: dict[str, str] = {}
    database: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        extent = _EXTENT.fullmatch(line)
        if extent is not None:
            extents.append(_extent(extent))
            continue
        pair = _PAIR.fullmatch(line)
        if pair is None:
            raise VmdkError(f"line {number} of a VMDK descriptor cannot be understood")
        _store(pair, header, database, number)
    if not 1 <= len(extents) <= _MAX_EXTENTS or len(database) > _MAX_DATABASE:
        raise VmdkError(f"a VMDK descriptor with {len(extents)} extents")
    if sum(extent.sectors for extent in extents) > _MAX_SECTORS:
        raise VmdkError("a VMDK descriptor of more than 64 TiB")
    return Descriptor(
        version=_number(header, "version", 10, 9),
        cid=_number(header, "cid", 16, NO_PARENT),
        parent_cid=_number(header, "parentcid", 16, NO_PARENT, default=NO_PARENT),
        create_type=_needed(header, "createtype"),
        extents=tuple(extents),
        parent_file_name=header.get("parentfilenamehint"),
        change_track_path=header.get("changetrackpath"),
        database=tuple(database.items()),
    )


def format_descriptor(descriptor: Descriptor) -> bytes:
    """The text as a host writes it; `parse_descriptor` gives the same value back."""
    lines = [
        _FIRST_LINE,
        f"version={descriptor.version}",
        'encoding="UTF-8"',
        f"CID={descriptor.cid:08x}",
        f"parentCID={descriptor.parent_cid:08x}",
        f'createType="{_writable(descriptor.create_type)}"',
    ]
    if descriptor.parent_file_name is not None:
        lines.append(f'parentFileNameHint="{_writable(descriptor.parent_file_name)}"')
    lines += ["", "# Extent description"]
    for extent in descriptor.extents:
        line = f"{extent.access} {extent.sectors} {extent.kind}"
        if extent.file_name is not None:
            line += f' "{_writable(extent.file_name)}"'
            line += "" if extent.start_sector is None else f" {extent.start_sector}"
        lines.append(line)
    if descriptor.change_track_path is not None:
        lines += ["", "# Change Tracking File"]
        lines.append(f'changeTrackPath="{_writable(descriptor.change_track_path)}"')
    lines += ["", "# The Disk Data Base", "#DDB", ""]
    lines += [f'ddb.{key} = "{_writable(value)}"' for key, value in descriptor.database]
    return ("\n".join(lines) + "\n").encode()


def geometry(capacity_bytes: int, *, ide: bool = False) -> tuple[tuple[str, str], ...]:
    """`geometry.*` lines of a SCSI disk (lsilogic, pvscsi, SAS, NVMe alike), or of an IDE disk."""
    heads, sectors = (255, 63) if capacity_bytes >= 1 << 30 else (64, 32)
    if ide:
        heads, sectors = 16, 63
    cylinders = max(1, capacity_bytes // SECTOR_BYTES // (heads * sectors))
    return (
        ("geometry.cylinders", str(min(cylinders, 16383 if ide else 65535))),
        ("geometry.heads", str(heads)),
        ("geometry.sectors", str(sectors)),
    )


def flat_descriptor(
    *,
    flat_file: str,
    size_bytes: int,
    uuid: str,
    content_id: int,
    hardware_version: int,
    ide: bool = False,
) -> Descriptor:
    """Of a base disk whose bytes are one flat file beside the descriptor, as a host writes it.

    Change tracking is not named, and the version is 1: whoever opens the disk starts anew.

    Args:
        uuid: 32 hex digits with or without dashes, as in `backing.uuid`.

    Raises:
        VmdkError: no whole number of sectors, or no uuid.
    """
    digits = uuid.replace("-", "").replace(" ", "").lower()
    if size_bytes % SECTOR_BYTES or not 0 < size_bytes // SECTOR_BYTES <= _MAX_SECTORS:
        raise VmdkError(f"a disk of {size_bytes} bytes cannot be described")
    if not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise VmdkError(f"not the uuid of a disk: {uuid[:64]!r}")
    pairs = [digits[at : at + 2] for at in range(0, 32, 2)]
    extent = VmdkExtent(
        access="RW", sectors=size_bytes // SECTOR_BYTES, kind="VMFS", file_name=flat_file
    )
    database = (
        ("adapterType", "ide" if ide else "lsilogic"),
        *geometry(size_bytes, ide=ide),
        ("longContentID", f"{secrets.token_hex(12)}{content_id:08x}"),
        ("thinProvisioned", "1"),
        ("uuid", f"{' '.join(pairs[:8])}-{' '.join(pairs[8:])}"),
        ("virtualHWVersion", str(hardware_version)),
    )
    return Descriptor(
        version=1,
        cid=content_id,
        parent_cid=NO_PARENT,
        create_type="vmfs",
        extents=(extent,),
        database=database,
    )


def _text(data: bytes) -> str:
    if len(data) > MAX_DESCRIPTOR_BYTES:
        raise VmdkError(f"a VMDK descriptor of {len(data)} bytes")
    data = data.rstrip(b"\0")
    declared = _ENCODING.search(data)
    name = declared[1].decode().lower() if declared else "utf-8"
    if name not in _ENCODINGS:
        raise VmdkError(f"a VMDK descriptor in the encoding {name}")
    try:
        text = data.decode(_ENCODINGS[name])
    except UnicodeDecodeError as error:
        raise VmdkError(f"a VMDK descriptor that is not {name}") from error
    if _CONTROL.search(text):
        raise VmdkError("control characters in a VMDK descriptor")
    return text


def _extent(match: re.Match[str]) -> VmdkExtent:
    access, sectors, kind, name, start = match.groups()
    if not 0 < int(sectors) <= _MAX_SECTORS or (start and int(start) > _MAX_SECTORS):
        raise VmdkError(f"a VMDK extent of {sectors} sectors")
    if name is not None and len(name) > _MAX_TEXT:
        raise VmdkError(f"a VMDK extent with a name of {len(name)} characters")
    return VmdkExtent(
        access=access,
        sectors=int(sectors),
        kind=kind.upper(),
        file_name=name,
        start_sector=None if start is None else int(start),
    )


def _store(
    pair: re.Match[str], header: dict[str, str], database: dict[str, str], number: int
) -> None:
    key, quoted, bare = pair.groups()
    value = bare if quoted is None else quoted
    if len(value) > _MAX_TEXT:
        raise VmdkError(f"line {number} of a VMDK descriptor is too long")
    if key.lower().startswith("ddb."):
        database[key[4:]] = value  # hosts leave doubles there; the last one counts
        return
    if key.lower() in header:
        raise VmdkError(f"line {number} of a VMDK descriptor gives {key} again")
    header[key.lower()] = value


def _needed(header: dict[str, str], key: str) -> str:
    value = header.get(key)
    if not value:
        raise VmdkError(f"a VMDK descriptor without {key}")
    return value


def _number(
    header: dict[str, str], key: str, base: int, most: int, default: int | None = None
) -> int:
    if default is not None and key not in header:
        return default
    text = _needed(header, key)
    if not re.fullmatch(r"[0-9]{1,4}" if base == 10 else r"[0-9A-Fa-f]{1,8}", text):
        raise VmdkError(f"{key} of a VMDK descriptor is no number")
    value = int(text, base)
    if value > most:
        raise VmdkError(f"{key} {value} of a VMDK descriptor")
    return value


def _writable(value: str) -> str:
    if '"' in value or _CONTROL.search(value) or "\n" in value or "\r" in value:
        raise VmdkError("a value that a VMDK descriptor cannot hold")
    return value
