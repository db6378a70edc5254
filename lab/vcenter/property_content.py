"""What a property collector says about one object: values, what is missing and why; and its XML.

The XML is written straight from the values: pyVmomi objects for 10,000 VMs times 25 properties
would cost more than reading them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyVmomi.VmomiSupport import GetWsdlName

from lab.faults import FaultName
from lab.vcenter.call import Call, no_permission
from lab.vcenter.managed_object import LabObject
from lab.vcenter.property_path import PropertyPath, read_property
from lab.vcenter.soap_encode import Encoder, SelfWriting, Write, text_of


@dataclass(frozen=True, slots=True)
class Content:
    """The properties of one object; a value of None (unset) is not written."""

    ref: Any
    values: tuple[tuple[PropertyPath, Any], ...]
    missing: tuple[tuple[PropertyPath, Any], ...]  # and the fault

    def write(self, write: Write, tag: str, encode: Encoder) -> None:
        write(f"<{tag}>")
        write_ref(write, "obj", self.ref)
        for path, value in self.values:
            if value is not None:
                write(f"<propSet><name>{text_of(path.text)}</name>")
                encode.any(write, "val", value, path.declared)
                write("</propSet>")
        write_missing(write, encode, self.missing)
        write(f"</{tag}>")


def write_ref(write: Write, tag: str, ref: Any) -> None:
    write(f'<{tag} type="{GetWsdlName(type(ref))}">{text_of(ref._moId)}</{tag}>')


def write_missing(
    write: Write, encode: Encoder, missing: Iterable[tuple[PropertyPath, Any]]
) -> None:
    for path, fault in missing:
        write(f"<missingSet><path>{text_of(path.text)}</path>")
        encode.value(write, "fault", fault, type(fault))
        write("</missingSet>")


def read_content(thing: LabObject, paths: Iterable[PropertyPath], call: Call) -> Content:
    values, missing = [], []
    allowed: dict[str, bool] = {}
    hidden: bool | None = None  # whether a fault hides the configuration, once it is asked for
    for path in paths:
        if path.text.partition(".")[0] == "config":
            if hidden is None:
                take = call.vcenter.switches.take
                hidden = take(FaultName.MISSING_PROPERTY, vm=thing.moid) is not None
            if hidden:
                missing.append((path, no_permission(path.privilege, thing)))
                continue
        if path.privilege not in allowed:
            allowed[path.privilege] = call.may(path.privilege, thing)
        if allowed[path.privilege]:
            values.append((path, read_property(thing, path, call)))
        else:
            missing.append((path, no_permission(path.privilege, thing)))
    return Content(thing.ref, tuple(values), tuple(missing))


@dataclass(frozen=True, slots=True)
class ContentList(SelfWriting):
    """The result of RetrieveProperties."""

    contents: tuple[Content, ...]

    def write_xml(self, write: Write, encode: Encoder) -> None:
        for content in self.contents:
            content.write(write, "returnval", encode)


@dataclass(frozen=True, slots=True)
class ContentPage(SelfWriting):
    """The result of RetrievePropertiesEx: a page, and the token for the next one."""

    contents: tuple[Content, ...]
    token: str | None

    def write_xml(self, write: Write, encode: Encoder) -> None:
        write("<returnval>")
        if self.token is not None:
            write(f"<token>{self.token}</token>")
        for content in self.contents:
            content.write(write, "objects", encode)
        write("</returnval>")
