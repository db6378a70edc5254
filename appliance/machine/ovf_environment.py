"""The OVF environment document: what a hypervisor tells a VM about its deployment properties.

The text comes from outside, so it is bounded, and a document type (entities, external files) is
refused before anything of it is expanded.
Thread model: pure. Source: DMTF DSP0243 1.1, section 9; DSP8027.
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.parsers import expat

from appliance.machine.errors import OvfEnvironmentError

MAX_BYTES = 256 << 10
_MAX_DEPTH = 16
_OE = "{http://schemas.dmtf.org/ovf/environment/1}"
_VE = "{http://www.vmware.com/schema/ovfenv}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfEnvironment:
    properties: dict[str, str]
    vm_moref: str
    """Of this VM in its vCenter, "" where the hypervisor does not say."""


def parse_environment(raw: bytes) -> OvfEnvironment:
    """Raises OvfEnvironmentError; never shows the content, which may hold secrets."""
    if len(raw) > MAX_BYTES:
        raise OvfEnvironmentError(f"an OVF environment of {len(raw)} bytes")
    _check_plain(raw)
    try:
        root = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError) as error:
        raise OvfEnvironmentError(f"the OVF environment is no XML: {error}") from None
    if root.tag != f"{_OE}Environment":
        raise OvfEnvironmentError("the root of the OVF environment is no oe:Environment")
    properties = {}
    for element in root.findall(f"{_OE}PropertySection/{_OE}Property"):
        name = element.get(f"{_OE}key", "")
        properties[name] = element.get(f"{_OE}value", "")
    return OvfEnvironment(properties=properties, vm_moref=root.get(f"{_VE}esxId", "")[:80])


def _check_plain(raw: bytes) -> None:
    """No document type, bounded nesting: seen by the parser, whatever the encoding."""
    parser = expat.ParserCreate()
    depth = 0

    def on_doctype(*_about: object) -> None:
        raise OvfEnvironmentError("a document type is not allowed in an OVF environment")

    def on_start(_name: str, _attributes: object) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise OvfEnvironmentError("the OVF environment is nested too deeply")

    def on_end(_name: str) -> None:
        nonlocal depth
        depth -= 1

    parser.StartDoctypeDeclHandler = on_doctype
    parser.StartElementHandler = on_start
    parser.EndElementHandler = on_end
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as error:
        raise OvfEnvironmentError(f"the OVF environment is no XML: {error}") from None
