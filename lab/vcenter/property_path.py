"""Property paths: checked against the type table once, then read quickly.

`config.hardware.device[2000].backing` is a property, nested ones, and an element of an array by its
key. A path that the types do not know raises InvalidProperty. After an element of an array the
rest is looked up in the element itself, whose type may be narrower than the schema says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl
from pyVmomi.VmomiSupport import DataObject, ManagedObject

from lab.vcenter.managed_object import LabObject

if TYPE_CHECKING:
    from lab.vcenter.call import Call

ANY: Any = object
_STEP = re.compile(r'([A-Za-z_][A-Za-z0-9_]*)((?:\[(?:-?\d+|"[^"\]]*")\])?)')
_LENGTH_LIMIT = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    value: int | str


@dataclass(frozen=True, slots=True, kw_only=True)
class PropertyPath:
    text: str
    name: str  # the top-level property
    steps: tuple[str | Key, ...]
    declared: Any  # the type the schema gives the value; ANY if it is not known
    privilege: str


def invalid_property(path: str) -> BaseException:
    fault: BaseException = vmodl.query.InvalidProperty(
        msg=f"The property '{path}' is invalid.", name=path
    )
    return fault


@lru_cache(maxsize=10_000)  # clients choose the text
def compile_path(vim_type: Any, text: str) -> PropertyPath:
    """Raises InvalidProperty."""
    if not text or len(text) > _LENGTH_LIMIT:
        raise invalid_property(text)
    steps: list[str | Key] = []
    declared, privilege = vim_type, ""
    for part in text.split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise invalid_property(text)
        name, key = match.groups()
        info = _info(declared, name, text)
        if not steps:
            privilege = info.privId or _default_privilege(vim_type)
        steps.append(name)
        declared = info.type if info is not ANY else ANY
        if key:
            if declared is not ANY and not issubclass(declared, list):
                raise invalid_property(text)
            steps.append(Key(value=key[2:-2] if key[1] == '"' else int(key[1:-1])))
            declared = ANY
    return PropertyPath(
        text=text,
        name=str(steps[0]),
        steps=tuple(steps[1:]),
        declared=declared,
        privilege=privilege,
    )


def _info(declared: Any, name: str, text: str) -> Any:
    if declared is ANY:
        return ANY
    if issubclass(declared, (DataObject, ManagedObject)) and not issubclass(declared, list):
        try:
            return declared._GetPropertyInfo(name)
        except AttributeError:
            pass
    raise invalid_property(text)


def _default_privilege(vim_type: Any) -> str:
    return "System.Read" if issubclass(vim_type, vim.ManagedEntity) else "System.View"


@cache
def all_paths(vim_type: Any) -> tuple[PropertyPath, ...]:
    return tuple(compile_path(vim_type, info.name) for info in vim_type._GetPropertyList())


def read_property(thing: LabObject, path: PropertyPath, call: Call | None) -> Any:
    """Return the value, or None when it, or something on the way to it, is unset."""
    value = thing.get(path.name, call)
    for step in path.steps:
        if value is None:
            return None
        if isinstance(step, Key):
            value = next((e for e in value if getattr(e, "key", None) == step.value), None)
        else:
            value = getattr(value, step, None)
    if isinstance(value, list) and not value:
        return None
    return value
