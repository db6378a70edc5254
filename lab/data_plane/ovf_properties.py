"""Deployment properties: those a descriptor asks for, and the environment a guest is told.

vCenter writes the environment at power-on; here it is written at the import, under the same key of
the VM's advanced configuration, for descriptors that ask for the transport "com.vmware.guestInfo".
Source: DMTF DSP0243 1.1, sections 9.5 and 9.9; design notes on vSphere, section 9.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

_OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
_OE = "http://schemas.dmtf.org/ovf/environment/1"
ENVIRONMENT_KEY = "guestinfo.ovfEnv"
GUEST_INFO = "com.vmware.guestInfo"


@dataclass(frozen=True, slots=True, kw_only=True)
class OvfProperty:
    key: str  # as the guest sees it: class.key.instance
    value: str
    configurable: bool


class PropertyMappingError(Exception):
    """A value was given for a property that there is not, or that nobody may set."""


def read_properties(system: ElementTree.Element) -> tuple[OvfProperty, ...]:
    found = []
    for section in system.findall(f"{_OVF}ProductSection"):
        before, after = section.get(f"{_OVF}class", ""), section.get(f"{_OVF}instance", "")
        for element in section.findall(f"{_OVF}Property"):
            parts = (before, element.get(f"{_OVF}key", ""), after)
            found.append(
                OvfProperty(
                    key=".".join(part for part in parts if part),
                    value=element.get(f"{_OVF}value", ""),
                    configurable=element.get(f"{_OVF}userConfigurable", "false") == "true",
                )
            )
    return tuple(found)


def environment(properties: Sequence[OvfProperty], given: Mapping[str, str]) -> str:
    """The document for the guest. Raises PropertyMappingError."""
    known = {each.key: each for each in properties}
    for key in given:
        if key not in known:
            raise PropertyMappingError(f"there is no property {key!r}")
        if not known[key].configurable:
            raise PropertyMappingError(f"property {key!r} is not user-configurable")
    lines = "".join(
        f"<Property oe:key={quoteattr(each.key)} "
        f"oe:value={quoteattr(given.get(each.key, each.value))}/>"
        for each in properties
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>'
        f'<Environment xmlns="{_OE}" xmlns:oe="{_OE}" oe:id="">'
        f"<PropertySection>{lines}</PropertySection></Environment>"
    )
