"""An OVF descriptor, read into values: what CreateImportSpec needs of it.

Bounded (size, nesting, no DTD); knows one VirtualSystem. Unknown optional items are reported as
warnings, unknown required ones are errors, as the product does.
Source: DMTF DSP0243 1.1; design notes on vSphere, section 9.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from xml.etree import ElementTree

from lab.data_plane.ovf_properties import OvfProperty, read_properties

MAX_OVF_BYTES = 4 << 20
_OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
_RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"
_VSSD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData}"
_VMW = "{http://www.vmware.com/schema/ovf}"
_UNITS = re.compile(r"byte(?:\s*\*\s*(\d{1,2})\s*\^\s*(\d{1,2}))?")
_OLD_UNITS = {"bytes": 1, "kilobytes": 1 << 10, "megabytes": 1 << 20, "gigabytes": 1 << 30}
STREAM_FORMAT = "http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"


class OvfError(Exception):
    """The descriptor cannot be imported; `fault` is the name of the vim fault that says so."""

    def __init__(self, fault: str, text: str) -> None:
        super().__init__(text)
        self.fault = fault


class ResourceType(IntEnum):
    CPU = 3
    MEMORY = 4
    IDE = 5
    SCSI = 6
    NETWORK = 10
    FLOPPY = 14
    CD = 15
    DVD = 16
    DISK = 17
    OTHER_STORAGE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfFile:
    file_id: str
    href: str
    size_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfDisk:
    disk_id: str
    capacity_bytes: int
    file: OvfFile | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfItem:
    """An Item of VirtualHardwareSection; texts are "" where absent."""

    instance_id: str
    type: int
    sub_type: str
    name: str
    parent: str
    address: str
    address_on_parent: str
    host_resource: str
    connection: str
    quantity: int
    units_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfPackage:
    name: str
    os_type: str  # guestId, "" where the descriptor does not say
    hardware_version: str  # "vmx-19", or ""
    items: tuple[OvfItem, ...]
    disks: dict[str, OvfDisk]
    files: dict[str, OvfFile]
    networks: tuple[str, ...]
    config: dict[str, str]  # vmw:Config
    extra_config: dict[str, str]  # vmw:ExtraConfig
    transports: tuple[str, ...]  # how the guest wants to be told its properties
    properties: tuple[OvfProperty, ...]
    warnings: tuple[str, ...] = field(default=())


def parse_ovf(text: str) -> OvfPackage:
    """Raises OvfError."""
    if len(text.encode()) > MAX_OVF_BYTES:
        raise OvfError("OvfInvalidPackage", "the descriptor is too large")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise OvfError("OvfXmlFormat", "a document type is not allowed")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise OvfError("OvfXmlFormat", str(error)) from error
    if root.tag != f"{_OVF}Envelope":
        raise OvfError("OvfInvalidPackage", "the root is not an ovf:Envelope")
    systems = root.findall(f"{_OVF}VirtualSystem")
    if len(systems) != 1:
        raise OvfError("OvfUnsupportedElement", f"{len(systems)} virtual systems")
    return _package(root, systems[0])


def _package(root: ElementTree.Element, system: ElementTree.Element) -> OvfPackage:
    files = {file.file_id: file for file in _files(root)}
    disks = {disk.disk_id: disk for disk in _disks(root, files)}
    hardware = system.find(f"{_OVF}VirtualHardwareSection")
    if hardware is None:
        raise OvfError("OvfMissingHardware", "there is no VirtualHardwareSection")
    os_section = system.find(f"{_OVF}OperatingSystemSection")
    return OvfPackage(
        name=system.findtext(f"{_OVF}Name") or system.get(f"{_OVF}id") or "vm",
        os_type=os_section.get(f"{_VMW}osType", "") if os_section is not None else "",
        hardware_version=hardware.findtext(
            f"{_OVF}System/{_VSSD}VirtualSystemType", default=""
        ).split(" ")[0],
        items=tuple(_item(element) for element in hardware.findall(f"{_OVF}Item")),
        disks=disks,
        files=files,
        networks=tuple(
            network.get(f"{_OVF}name", "")
            for network in root.findall(f"{_OVF}NetworkSection/{_OVF}Network")
        ),
        config=dict(_settings(hardware, "Config")),
        extra_config=dict(_settings(hardware, "ExtraConfig")),
        transports=tuple(hardware.get(f"{_OVF}transport", "").split()),
        properties=read_properties(system),
        warnings=tuple(_unknown_sections(system)),
    )


def _files(root: ElementTree.Element) -> Iterator[OvfFile]:
    for element in root.findall(f"{_OVF}References/{_OVF}File"):
        size = element.get(f"{_OVF}size")
        yield OvfFile(
            file_id=_required(element, "id"),
            href=_required(element, "href"),
            size_bytes=_number(size, "size") if size else None,
        )


def _disks(root: ElementTree.Element, files: dict[str, OvfFile]) -> Iterator[OvfDisk]:
    for element in root.findall(f"{_OVF}DiskSection/{_OVF}Disk"):
        file_ref = element.get(f"{_OVF}fileRef")
        if file_ref is not None and file_ref not in files:
            raise OvfError("OvfInvalidPackage", f"no file {file_ref}")
        if file_ref is not None and element.get(f"{_OVF}format", "") != STREAM_FORMAT:
            raise OvfError("OvfUnsupportedDiskProvisioning", "only streamOptimized disks")
        unit = _unit(element.get(f"{_OVF}capacityAllocationUnits", "byte"))
        yield OvfDisk(
            disk_id=_required(element, "diskId"),
            capacity_bytes=_number(_required(element, "capacity"), "capacity") * unit,
            file=files[file_ref] if file_ref else None,
        )


def _item(element: ElementTree.Element) -> OvfItem:
    def text(name: str) -> str:
        return (element.findtext(f"{_RASD}{name}") or "").strip()

    return OvfItem(
        instance_id=text("InstanceID"),
        type=_number(text("ResourceType"), "ResourceType"),
        sub_type=text("ResourceSubType"),
        name=text("ElementName"),
        parent=text("Parent"),
        address=text("Address"),
        address_on_parent=text("AddressOnParent"),
        host_resource=text("HostResource"),
        connection=text("Connection"),
        quantity=_number(text("VirtualQuantity") or "1", "VirtualQuantity"),
        units_bytes=_unit(text("AllocationUnits") or "byte", strict=False),
    )


def _settings(hardware: ElementTree.Element, kind: str) -> Iterator[tuple[str, str]]:
    for element in hardware.findall(f"{_VMW}{kind}"):
        yield element.get(f"{_VMW}key", ""), element.get(f"{_VMW}value", "")


_KNOWN_SECTIONS = {
    f"{_OVF}{name}"
    for name in (
        "Info",
        "Name",
        "OperatingSystemSection",
        "VirtualHardwareSection",
        "AnnotationSection",
        "ProductSection",
        "EulaSection",
    )
}


def _unknown_sections(system: ElementTree.Element) -> Iterator[str]:
    for element in system:
        if element.tag in _KNOWN_SECTIONS:
            continue
        if element.get(f"{_OVF}required", "true") != "false":
            raise OvfError("OvfUnsupportedSection", f"unsupported section {element.tag}")
        yield f"section {element.tag} is ignored"


def _required(element: ElementTree.Element, name: str) -> str:
    value = element.get(f"{_OVF}{name}")
    if value is None:
        raise OvfError("OvfMissingAttribute", f"{element.tag} has no {name}")
    return value


def _number(text: str, what: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise OvfError("OvfInvalidValue", f"{what} {text[:40]!r} is not a number")
    return int(text)


def _unit(text: str, *, strict: bool = True) -> int:
    """Bytes per unit; with `strict` off, units that are no bytes ("hertz * 10^6") count 1."""
    match = _UNITS.fullmatch(text.strip())
    if match is not None:
        return int(match[1]) ** int(match[2]) if match[1] else 1
    unit = _OLD_UNITS.get(text.strip().lower(), None if strict else 1)
    if unit is None:
        raise OvfError("OvfInvalidValue", f"unknown unit {text[:40]!r}")
    return unit
