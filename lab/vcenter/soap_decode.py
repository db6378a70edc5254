"""Elements of a request become pyVmomi values, by the declared type of the parameter.

Strict: an unknown element, a missing required one, a value outside its type or a dynamic type that
does not fit raises InvalidRequest or InvalidType with the messages of a real server. Arrays
that are required may be empty: SOAP cannot tell an empty array from none.
"""

from __future__ import annotations

import base64
import binascii
from datetime import datetime
from typing import Any

from pyVmomi import vmodl
from pyVmomi.Iso8601 import ParseISO8601
from pyVmomi.VmomiSupport import (
    F_OPTIONAL,
    XMLNS_VMODL_BASE,
    DataObject,
    Enum,
    GetVmodlType,
    GetWsdlMethod,
    GetWsdlType,
    ManagedMethod,
    ManagedObject,
    binary,
    byte,
    long,
    short,
)

from lab.vcenter.soap_request import Element

MethodFault: Any = vmodl.MethodFault
LocalizedMethodFault: Any = vmodl.LocalizedMethodFault
REFERENCES: Any = GetVmodlType("vmodl.ManagedObject[]")
_BITS = {byte: 8, short: 16, int: 32, long: 64}


def invalid(message: str) -> BaseException:
    fault: BaseException = vmodl.fault.InvalidRequest(msg=message)
    return fault


def invalid_type(name: str, message: str) -> BaseException:
    fault: BaseException = vmodl.fault.InvalidType(msg=message, argument=name)
    return fault


def decode_arguments(method: Element, params: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """Return `_this` and the arguments in order. Raises InvalidRequest, InvalidType."""
    elements: dict[str, list[Element]] = {}
    for child in method.children:
        elements.setdefault(child.name, []).append(child)
    this = _only(elements.pop("_this", []), "_this")
    if this is None:
        raise invalid("Required parameter _this is missing")
    arguments = []
    for param in params:
        given = elements.pop(param.name, [])
        arguments.append(_field(given, param, f"Required parameter {param.name} is missing"))
    if elements:
        raise invalid(f"Unexpected element tag {next(iter(elements))!r} in {method.name}")
    return decode(this, ManagedObject), arguments


def _only(given: list[Element], name: str) -> Element | None:
    if len(given) > 1:
        raise invalid(f"The element {name} is given {len(given)} times")
    return given[0] if given and not given[0].is_nil else None


def _field(given: list[Element], info: Any, missing: str) -> Any:
    declared = info.type
    if issubclass(declared, list):
        return _array(given, declared)
    element = _only(given, info.name)
    if element is None:
        if not info.flags & F_OPTIONAL:
            raise invalid(missing)
        return None
    return decode(element, declared)


def _array(given: list[Element], declared: Any) -> Any:
    values = declared()
    for element in given:
        values.append(decode(element, declared.Item))
    return values


def decode(element: Element, declared: Any) -> Any:
    """Return the value of one element whose declared type is known."""
    wanted = _dynamic_type(element, declared)
    if issubclass(wanted, list):
        return _array(element.children, wanted)
    if issubclass(wanted, ManagedObject):
        return _reference(element, wanted)
    if issubclass(wanted, MethodFault):
        return _fault(element)
    if issubclass(wanted, DataObject):
        return _data_object(element, wanted)
    return _primitive(element, wanted)


def _dynamic_type(element: Element, declared: Any) -> Any:
    if element.xsi_type is None or declared is type or declared is ManagedMethod:
        return declared
    namespace, name = element.xsi_type
    if name == "ManagedObjectReference":
        return declared if issubclass(declared, ManagedObject) else ManagedObject
    if name == "ArrayOfManagedObjectReference":
        return REFERENCES
    try:
        dynamic = GetWsdlType(namespace, name)
    except KeyError:
        raise invalid_type(element.name, f"Unknown type {name!r} of {element.name}") from None
    if declared is object or issubclass(dynamic, declared) or _same_primitive(dynamic, declared):
        return dynamic
    if dynamic is LocalizedMethodFault and issubclass(declared, MethodFault):
        return declared
    raise invalid_type(element.name, f"The type {name!r} does not fit {element.name}")


def _same_primitive(dynamic: Any, declared: Any) -> bool:
    return issubclass(declared, dynamic) and not issubclass(dynamic, DataObject)


def _reference(element: Element, wanted: Any) -> Any:
    if not element.type_name:
        raise invalid(f"The reference {element.name} has no type")
    try:
        named = GetWsdlType(XMLNS_VMODL_BASE, element.type_name)
    except KeyError:
        raise invalid_type(element.name, f"Unknown type {element.type_name!r}") from None
    if not issubclass(named, wanted):
        raise invalid_type(
            element.name, f"{element.name} must be a {wanted._wsdlName}, not {element.type_name}"
        )
    return named(element.text.strip())


def _fault(element: Element) -> Any:
    """A fault travels as LocalizedMethodFault: its `fault` child names the type."""
    inner = [child for child in element.children if child.name == "fault"]
    if len(inner) != 1 or inner[0].xsi_type is None:
        raise invalid(f"{element.name} is not a LocalizedMethodFault")
    try:
        kind = GetWsdlType(*inner[0].xsi_type)
    except KeyError:
        raise invalid_type(element.name, f"Unknown fault of {element.name}") from None
    if not issubclass(kind, MethodFault):
        raise invalid_type(element.name, f"{element.name} is not a fault")
    fault = _data_object(inner[0], kind)
    for child in element.children:
        if child.name == "localizedMessage":
            fault.msg = child.text
    return fault


def _data_object(element: Element, wanted: Any) -> Any:
    given: dict[str, list[Element]] = {}
    for child in element.children:
        given.setdefault(child.name, []).append(child)
    value = wanted()
    for info in wanted._GetPropertyList():
        missing = (
            f"Required property {info.name} is missing from data object of type {wanted._wsdlName}"
        )
        decoded = _field(given.pop(info.name, []), info, missing)
        if decoded is not None:
            vars(value)[info.name] = decoded  # checked already; an empty array may be required
    if given:
        raise invalid(f"Unexpected element tag {next(iter(given))!r} in {wanted._wsdlName}")
    return value


def _primitive(element: Element, wanted: Any) -> Any:
    text = element.text
    if element.children:
        raise invalid(f"The element {element.name} must hold a {wanted.__name__}")
    try:
        return _parsed(text, wanted)
    except (ValueError, KeyError, AttributeError, binascii.Error):
        raise invalid(f"{text[:80]!r} is not a value for {element.name}") from None


def _parsed(text: str, wanted: Any) -> Any:
    if wanted is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
    if wanted in _BITS:
        number = int(text)
        if not -(1 << _BITS[wanted] - 1) <= number < 1 << _BITS[wanted] - 1:
            raise ValueError(text)
        return wanted(number)
    if wanted is datetime:
        moment = ParseISO8601(text.strip())
        if moment is None:
            raise ValueError(text)
        return moment
    if wanted is binary:
        return binary(base64.b64decode(text, validate=False))
    if wanted is type:
        return GetWsdlType(XMLNS_VMODL_BASE, text.strip().rpartition(":")[2])
    if wanted is ManagedMethod:
        return GetWsdlMethod(XMLNS_VMODL_BASE, text.strip())
    if issubclass(wanted, Enum):
        if text not in wanted.values:
            raise ValueError(text)
        return wanted(text)
    if wanted is object:
        return text
    return wanted(text)
