"""pyVmomi values become XML as a vCenter writes it, fast enough for an inventory of 10,000 VMs.

What pyVmomi's own serialiser looks up for every field of every object is worked out once per
class and API version here. Fields and types that are newer than the client's version are left
out or widened. Values need not be of the exact declared type; an Any carries its type.

Thread model: an Encoder may be used from any thread; its tables only grow.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime
from functools import cache
from typing import Any
from xml.sax.saxutils import escape

from pyVmomi import vmodl
from pyVmomi.Iso8601 import ISO8601Format
from pyVmomi.Version import IsChildVersion
from pyVmomi.VmomiSupport import (
    F_LINK,
    XMLNS_XSD,
    Capitalize,
    DataObject,
    Enum,
    GetCompatibleType,
    GetQualifiedWsdlName,
    GetWsdlName,
    ManagedMethod,
    ManagedObject,
    binary,
)

MethodFault: Any = vmodl.MethodFault
ANY: Any = object
LINKABLE: Any = DataObject  # the table says which have a key
Write = Callable[[str], None]
_CONTROL = {code: "?" for code in range(32) if code not in (9, 10, 13)}


def text_of(value: str) -> str:
    """Escape, and replace what XML 1.0 cannot carry."""
    return escape(value if value.isprintable() else value.translate(_CONTROL))


@cache
def _type_name(kind: Any) -> str:
    namespace, name = GetQualifiedWsdlName(kind)
    return f"xsd:{name}" if namespace == XMLNS_XSD else str(name)


class Encoder:
    """Use `encoder(version)`, which keeps one per API version."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._fields: dict[Any, tuple[tuple[str, Any, bool], ...]] = {}
        self._widened: dict[Any, Any] = {}

    def value(self, write: Write, tag: str, value: Any, declared: Any) -> None:
        """Write one field; `declared` is the type that the schema gives it, ANY for any."""
        if isinstance(value, list):
            if declared is ANY:
                self.any(write, tag, value, ANY)
                return
            item = declared.Item if issubclass(declared, list) else declared
            for element in value:
                self.value(write, tag, element, item)
        elif declared is ANY:
            self.any(write, tag, value, ANY)
        elif isinstance(value, DataObject):
            self._object(write, tag, value, declared)
        else:
            write(f"<{tag}{_reference_type(value)}>{_plain(value)}</{tag}>")

    def any(self, write: Write, tag: str, value: Any, declared: Any) -> None:
        """Write a value whose place is of type Any; `declared` names the type of a primitive."""
        if isinstance(value, list):
            self._any_list(write, tag, value, declared)
        elif isinstance(value, DataObject):
            self._object(write, tag, value, ANY)
        elif isinstance(value, ManagedObject):
            write(
                f'<{tag} type="{GetWsdlName(type(value))}" '
                f'xsi:type="ManagedObjectReference">{text_of(value._moId)}</{tag}>'
            )
        else:
            name = _primitive_name(value, declared)
            write(f'<{tag} xsi:type="{name}">{_plain(value)}</{tag}>')

    def _any_list(self, write: Write, tag: str, value: Any, declared: Any) -> None:
        kind = declared if declared is not ANY else type(value)
        item = getattr(kind, "Item", str)
        if issubclass(item, ManagedObject):
            name = element = "ManagedObjectReference"
        elif (
            item is type
            or item is ManagedMethod
            or (issubclass(item, str) and not issubclass(item, Enum))
        ):
            name, element, item = "String", "string", str
        else:
            element = GetWsdlName(item)
            name = Capitalize(element)
        write(f'<{tag} xsi:type="ArrayOf{name}">')
        for entry in value:
            self.value(write, element, entry, item)
        write(f"</{tag}>")

    def _object(self, write: Write, tag: str, value: Any, declared: Any) -> None:
        kind = type(value)
        if issubclass(kind, MethodFault):
            self._localized_fault(write, tag, value, declared)
            return
        kind = self._wide(kind)
        if kind is declared:
            write(f"<{tag}>")
        else:
            write(f'<{tag} xsi:type="{_type_name(kind)}">')
        self.fields(write, value, kind)
        write(f"</{tag}>")

    def _localized_fault(self, write: Write, tag: str, fault: Any, declared: Any) -> None:
        write(f'<{tag} xsi:type="LocalizedMethodFault">' if declared is ANY else f"<{tag}>")
        kind = self._wide(type(fault))
        write(f'<fault xsi:type="{_type_name(kind)}">')
        self.fields(write, fault, kind)
        write(f"</fault><localizedMessage>{text_of(fault.msg or '')}</localizedMessage></{tag}>")

    def fault_detail(self, write: Write, fault: Any) -> None:
        """Write a fault as the content of the `detail` of a SOAP fault."""
        kind = self._wide(type(fault))
        name = _type_name(kind)
        write(f'<{name}Fault xmlns="urn:vim25" xsi:type="{name}">')
        self.fields(write, fault, kind)
        write(f"</{name}Fault>")

    def fields(self, write: Write, value: Any, kind: Any) -> None:
        held = value.__dict__
        for name, declared, is_link in self._fields.get(kind) or self._learn(kind):
            field = held.get(name)
            if field is None:
                continue
            if isinstance(field, str) and not is_link and declared is not ANY:
                write(f"<{name}>{text_of(field)}</{name}>")
            elif is_link and isinstance(field, LINKABLE):
                self.value(write, name, field.key, str)
            else:
                self.value(write, name, field, declared)

    def _wide(self, kind: Any) -> Any:
        found = self._widened.get(kind)
        if found is None:
            found = self._widened[kind] = GetCompatibleType(kind, self._version)
        return found

    def _learn(self, kind: Any) -> tuple[tuple[str, Any, bool], ...]:
        fields = tuple(
            (info.name, info.type, bool(info.flags & F_LINK))
            for info in kind._GetPropertyList()
            if IsChildVersion(self._version, info.version)
            and not (info.name == "msg" and issubclass(kind, MethodFault))
        )
        self._fields[kind] = fields
        return fields


def _reference_type(value: Any) -> str:
    return f' type="{GetWsdlName(type(value))}"' if isinstance(value, ManagedObject) else ""


def _primitive_name(value: Any, declared: Any) -> str:
    if isinstance(value, (type, ManagedMethod)):
        return "xsd:string"
    kind: Any = declared if declared is not ANY else type(value)
    if isinstance(value, str) and not issubclass(kind, (Enum, str)):
        kind = type(value)
    if issubclass(kind, str) and not issubclass(kind, Enum):
        return "xsd:string"
    if issubclass(kind, (DataObject, ManagedObject, list)):
        kind = type(value)
    return _type_name(kind)


BINARY: Any = binary


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return text_of(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, datetime):
        return str(ISO8601Format(value))
    if isinstance(value, BINARY):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, ManagedObject):
        return text_of(value._moId)
    if isinstance(value, ManagedMethod):
        return str(value.info.wsdlName)
    if isinstance(value, type):
        return str(GetWsdlName(value))
    raise TypeError(f"{type(value).__name__} is not a value of this API")


class SelfWriting:
    """A result that writes its own XML, for what would be slow as pyVmomi objects."""

    def write_xml(self, write: Write, encode: Encoder) -> None:
        raise NotImplementedError


@cache
def encoder(version: str) -> Encoder:
    return Encoder(version)
