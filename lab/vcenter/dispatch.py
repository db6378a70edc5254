"""From a parsed request to a handler: which method, on which object, may he, with what.

The order is a real server's: the method must exist, the caller be logged in (unless the method is
anonymous), the object exist, the arguments fit, the privileges be there; then the handler runs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pyVmomi import vmodl
from pyVmomi.Version import IsChildVersion
from pyVmomi.VmomiSupport import (
    XMLNS_VMODL_BASE,
    GetWsdlMethod,
    ManagedObject,
    Object,
)

from lab.vcenter.call import Call
from lab.vcenter.managed_object import Handler, LabObject
from lab.vcenter.property_path import compile_path, read_property
from lab.vcenter.registry import not_found
from lab.vcenter.soap_decode import decode, decode_arguments, invalid
from lab.vcenter.soap_request import Element

ANONYMOUS = "System.Anonymous"
_FETCH_PARAMS = (Object(name="prop", type=str, flags=0),)


@dataclass(frozen=True, slots=True)
class Answer:
    value: Any
    declared: Any  # the type that the schema gives the result; None for void


def dispatch(call: Call, request: Element) -> Answer:
    """Raises the fault to answer with."""
    if request.namespace != XMLNS_VMODL_BASE:
        raise invalid(f"Unable to resolve namespace {request.namespace!r}")
    if request.name == "Fetch":
        return _fetch(call, request)
    try:
        info = GetWsdlMethod(XMLNS_VMODL_BASE, request.name).info
    except KeyError:
        raise invalid(f"Unable to resolve WSDL method name {request.name!r}") from None
    if info.privId != ANONYMOUS:
        call.authenticated()
    thing = _target(call, request)
    handler = thing.handler(request.name)
    if handler is None or not IsChildVersion(call.version, info.version):
        raise vmodl.fault.MethodNotFound(
            msg=f"The method {request.name} is not found.", receiver=thing.ref, method=request.name
        )
    _this, arguments = decode_arguments(request, info.params)
    _check_privileges(call, thing, handler, arguments)
    value = getattr(thing, handler.name)(replace(call, method=info), *arguments)
    return Answer(value, None if info.result is type(None) else info.result)


def _target(call: Call, request: Element) -> LabObject:
    for child in request.children:
        if child.name == "_this":
            ref = decode(child, ManagedObject)
            thing = call.vcenter.registry.get(ref._moId)
            if thing is None or not issubclass(thing.vim_type, type(ref)):
                raise not_found(ref)
            return call.resolve(ref, LabObject)
    raise invalid("Required parameter _this is missing")


def _check_privileges(call: Call, thing: LabObject, handler: Handler, arguments: list[Any]) -> None:
    if handler.privilege and handler.privilege != ANONYMOUS:
        call.require(handler.privilege, thing)
    for param, argument in zip(handler.info.params, arguments, strict=True):
        if param.privId:
            for ref in argument if isinstance(argument, list) else [argument]:
                if isinstance(ref, ManagedObject):
                    call.require(param.privId, call.resolve(ref, LabObject))


def _fetch(call: Call, request: Element) -> Answer:
    """pyVmomi reads a property of a reference with this method, which no schema lists."""
    thing = _target(call, request)
    _this, (name,) = decode_arguments(request, _FETCH_PARAMS)
    path = compile_path(thing.vim_type, name)
    call.require(path.privilege, thing)
    value = read_property(thing, path, call)
    return Answer(value, path.declared)
