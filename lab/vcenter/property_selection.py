"""Which objects a FilterSpec selects, and which of their properties.

Source: vSphere Web Services SDK Programming Guide, "PropertyCollector": ObjectSpec, TraversalSpec,
SelectionSpec by name, skip. Selections may be recursive; every (object, selection) is visited once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyVmomi import vmodl
from pyVmomi.VmomiSupport import ManagedObject

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject
from lab.vcenter.property_path import PropertyPath, all_paths, compile_path, read_property

_TRAVERSAL = vmodl.query.PropertyCollector.TraversalSpec


@dataclass(frozen=True, slots=True)
class Selected:
    thing: LabObject
    paths: tuple[PropertyPath, ...]


def invalid_argument(name: str, message: str) -> BaseException:
    fault: BaseException = vmodl.fault.InvalidArgument(msg=message, invalidProperty=name)
    return fault


class Selection:
    """A FilterSpec that has been checked. Raises InvalidArgument, InvalidProperty."""

    def __init__(self, spec: Any) -> None:
        self._objects = spec.objectSet
        self._properties = spec.propSet
        self._named: dict[str, Any] = {}
        self._paths: dict[Any, tuple[PropertyPath, ...] | None] = {}
        for object_spec in self._objects:
            self._learn_names(object_spec.selectSet)
        for object_spec in self._objects:
            self._check_names(object_spec.selectSet)
        for property_spec in self._properties:
            for path in property_spec.pathSet:
                compile_path(property_spec.type, path)

    def _learn_names(self, selections: Any) -> None:
        for selection in selections:
            if isinstance(selection, _TRAVERSAL):
                declared = compile_path(selection.type, selection.path).declared
                item = declared.Item if issubclass(declared, list) else declared
                if not issubclass(item, ManagedObject):
                    raise invalid_argument("path", f"{selection.path} does not name objects")
                if selection.name:
                    self._named[selection.name] = selection
                self._learn_names(selection.selectSet)

    def _check_names(self, selections: Any) -> None:
        for selection in selections:
            if isinstance(selection, _TRAVERSAL):
                self._check_names(selection.selectSet)
            elif selection.name not in self._named:
                raise invalid_argument("name", f"No traversal is named {selection.name!r}")

    def paths_for(self, vim_type: Any) -> tuple[PropertyPath, ...] | None:
        """The properties asked of a type; None if objects of the type are not asked for."""
        if vim_type not in self._paths:
            self._paths[vim_type] = self._work_out(vim_type)
        return self._paths[vim_type]

    def _work_out(self, vim_type: Any) -> tuple[PropertyPath, ...] | None:
        fitting = [spec for spec in self._properties if issubclass(vim_type, spec.type)]
        if not fitting:
            return None
        paths: dict[str, PropertyPath] = {}
        for spec in fitting:
            wanted = (
                all_paths(vim_type)
                if spec.all
                else tuple(compile_path(vim_type, path) for path in spec.pathSet)
            )
            paths.update({path.text: path for path in wanted})
        return tuple(paths.values())

    def evaluate(self, call: Call) -> list[Selected]:
        """Return what is selected now, each object once, in the order it was reached.

        Raises ManagedObjectNotFound for a start object that is gone. What the caller may not
        view is left out, unless he names it himself.
        """
        found: dict[str, Selected] = {}
        for spec in self._objects:
            start = call.resolve(spec.obj, LabObject)
            if not spec.skip:
                self._add(found, start)
            for thing in self._walk(start, spec.selectSet, call):
                self._add(found, thing)
        return list(found.values())

    def _add(self, found: dict[str, Selected], thing: LabObject) -> None:
        if thing.moid not in found:
            paths = self.paths_for(thing.vim_type)
            if paths is not None:
                found[thing.moid] = Selected(thing, paths)

    def _walk(self, start: LabObject, selections: Any, call: Call) -> Iterator[LabObject]:
        visited: set[tuple[str, int]] = set()
        pending = [(start, selection) for selection in reversed(selections)]
        while pending:
            thing, selection = pending.pop()
            traversal = self._named.get(selection.name, selection) if selection.name else selection
            if not isinstance(traversal, _TRAVERSAL) or (thing.moid, id(traversal)) in visited:
                continue
            visited.add((thing.moid, id(traversal)))
            if not issubclass(thing.vim_type, traversal.type):
                continue
            for reached in self._step(thing, traversal, call):
                if not traversal.skip:
                    yield reached
                pending.extend((reached, inner) for inner in reversed(traversal.selectSet))

    def _step(self, thing: LabObject, traversal: Any, call: Call) -> Iterator[LabObject]:
        path = compile_path(thing.vim_type, traversal.path)
        if not call.may(path.privilege, thing):
            return
        value = read_property(thing, path, call)
        refs = value if isinstance(value, list) else [value] if value is not None else []
        for ref in refs:
            reached = call.vcenter.registry.get(ref._moId)
            if reached is not None and call.may("System.View", reached):
                yield reached
