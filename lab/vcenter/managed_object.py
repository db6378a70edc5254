"""What every managed object of the practice vCenter is: properties, methods, a place to stand.

Names are checked against pyVmomi's type table when a class is made and when a value is set, so
that a misspelt property cannot be served. Stored values are replaced and never changed in place.

Thread model: `set` and `update` take the registry's lock; reads do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pyVmomi import vim
from pyVmomi.VmomiSupport import CheckField, ManagedObject

if TYPE_CHECKING:
    from lab.vcenter.call import Call
    from lab.vcenter.lab_vcenter import LabVcenter
    from lab.vcenter.sessions import Session

Function = TypeVar("Function", bound=Callable[..., Any])
FROM_TABLE = "(the type table's)"


@dataclass(frozen=True, slots=True)
class Handler:
    """A method of a managed object: what runs, and the privilege it needs first."""

    name: str  # of the Python function
    info: Any  # pyVmomi's method info
    privilege: str | None


def method(wsdl_name: str, *, privilege: str | None = FROM_TABLE) -> Callable[[Function], Function]:
    """Serve a method by its WSDL name. `privilege=None`: the handler checks by itself."""

    def mark(function: Function) -> Function:
        function._lab_method = (wsdl_name, privilege)  # type: ignore[attr-defined]
        return function

    return mark


def computed(property_name: str) -> Callable[[Function], Function]:
    """Work a property out at every read, by `function(self, call)`; None means unset."""

    def mark(function: Function) -> Function:
        function._lab_property = property_name  # type: ignore[attr-defined]
        return function

    return mark


def method_infos(vim_type: Any) -> dict[str, Any]:
    """Every method of a type and its bases, by WSDL name."""
    return {info.wsdlName: info for info in vim_type._GetMethodList()}


def _handler(name: str, function: Any, info: Any, privilege: str | None) -> Handler:
    if function.__code__.co_argcount != len(info.params) + 2:
        raise TypeError(f"{name}: {info.wsdlName} takes {[param.name for param in info.params]}")
    return Handler(name, info, info.privId if privilege is FROM_TABLE else privilege)


class LabObject:
    vim_type: ClassVar[Any] = ManagedObject
    moid_prefix: ClassVar[str] = "object"
    _handlers: ClassVar[dict[str, Handler]] = {}
    _computed: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls) -> None:
        infos = method_infos(cls.vim_type)
        handlers, properties = dict(cls._handlers), dict(cls._computed)
        for place in reversed(cls.__mro__):  # so that a plain class may be mixed in
            for name, value in vars(place).items():
                if found := getattr(value, "_lab_method", None):
                    info = infos[found[0]]  # a KeyError names the misspelt method
                    handlers[found[0]] = _handler(name, value, info, found[1])
                if found := getattr(value, "_lab_property", None):
                    cls.vim_type._GetPropertyInfo(found)
                    properties[found] = name
        cls._handlers, cls._computed = handlers, properties

    def __init__(self, vcenter: LabVcenter, moid: str | None = None) -> None:
        self.vcenter = vcenter
        self.moid = moid or vcenter.registry.allocate(self.moid_prefix)
        self.ref: Any = self.vim_type(self.moid)
        self.owner: Session | None = None  # a session's own object dies with the session
        self.changed_at = 0
        self._values: dict[str, Any] = {}
        vcenter.registry.add(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.moid}>"

    @property
    def registered(self) -> bool:
        return self.vcenter.registry.holds(self)

    def handler(self, wsdl_name: str) -> Handler | None:
        return self._handlers.get(wsdl_name)

    def get(self, name: str, call: Call | None = None) -> Any:
        """Return a top-level property, whose name is not checked; None and [] are unset."""
        function = self._computed.get(name)
        if function is not None:
            return getattr(self, function)(call)
        return self._values.get(name)

    def set(self, **values: Any) -> None:
        """Replace stored properties. Raises TypeError or AttributeError for what does not fit."""
        for name, value in values.items():
            if value is not None:
                CheckField(self.vim_type._GetPropertyInfo(name), value)
        with self.vcenter.registry.lock:
            self._values.update(values)
            self.touch()

    def update(self, path: str, value: Any) -> None:
        """Replace one nested value, such as `runtime.powerState`, copying what leads to it."""
        name, *steps = path.split(".")
        if not steps:
            self.set(**{name: value})
            return
        with self.vcenter.registry.lock:
            root = copy.copy(self._values[name])
            place = root
            for step in steps[:-1]:
                inner = copy.copy(getattr(place, step))
                setattr(place, step, inner)
                place = inner
            setattr(place, steps[-1], value)
            self._values[name] = root
            self.touch()

    def touch(self) -> None:
        """Say that a computed property may have changed."""
        self.vcenter.registry.note_change(self)

    def unregister(self) -> None:
        """Take the object away. Idempotent."""
        self.vcenter.registry.remove(self)

    def guarded_by(self) -> LabObject:
        """The entity whose permissions decide about this object; the root folder by default."""
        return self.vcenter.root_folder


class ManagedEntity(LabObject):
    """What stands in the inventory tree: it has a name, a parent and permissions of its own."""

    vim_type = vim.ManagedEntity

    def __init__(
        self, vcenter: LabVcenter, name: str, parent: ManagedEntity | None, moid: str | None = None
    ) -> None:
        super().__init__(vcenter, moid)
        self.parent = parent
        self.custom_values: dict[int, str] = {}
        self.set(name=name, overallStatus="green", configStatus="green", alarmActionsEnabled=True)

    @property
    def name(self) -> str:
        return str(self._values["name"])

    def guarded_by(self) -> LabObject:
        return self

    def children(self) -> list[ManagedEntity]:
        """What stands below this in the inventory tree. A container overrides it."""
        return []

    def view_children(self) -> list[ManagedEntity]:
        """What a ContainerView of this goes on to; more than `children` for computes and hosts."""
        return self.children()

    def ancestors(self) -> list[ManagedEntity]:
        """From the parent up to the root folder."""
        found, entity = [], self.parent
        while entity is not None:
            found.append(entity)
            entity = entity.parent
        return found

    def path(self) -> str:
        """The inventory path as clients write it: without the root folder."""
        names = [entity.name for entity in reversed(self.ancestors())][1:]
        return "/".join([*names, self.name])

    def datacenter(self) -> ManagedEntity | None:
        for entity in [self, *self.ancestors()]:
            if issubclass(entity.vim_type, vim.Datacenter):
                return entity
        return None

    @computed("parent")
    def _parent(self, _call: Call | None) -> Any:
        return self.parent.ref if self.parent else None

    @computed("effectiveRole")
    def _effective_role(self, call: Call | None) -> Any:
        if call is None or call.session is None:
            return []
        return self.vcenter.accounts.roles_of(call.session.user, self)

    @computed("permission")
    def _permission(self, _call: Call | None) -> Any:
        return self.vcenter.accounts.permissions_on(self)

    @computed("recentTask")
    def _recent_task(self, _call: Call | None) -> Any:
        return self.vcenter.tasks.recent_of(self)

    @computed("customValue")
    def _custom_value(self, _call: Call | None) -> Any:
        return [
            vim.CustomFieldsManager.StringValue(key=key, value=value)
            for key, value in sorted(self.custom_values.items())
        ]

    @computed("value")
    def _value(self, call: Call | None) -> Any:
        return self._custom_value(call)

    @computed("availableField")
    def _available_field(self, _call: Call | None) -> Any:
        return self.vcenter.custom_fields.fields_for(self)

    @method("Rename_Task", privilege=None)
    def rename(self, call: Call, new_name: str) -> Any:
        from lab.vcenter.names import check_new_name

        call.require(self.rename_privilege(), self)
        check_new_name(self.parent, new_name, renamed=self)

        def work(_task: Any) -> None:
            self.set(name=new_name)

        return call.start_task(self, work)

    def rename_privilege(self) -> str:
        return "Folder.Rename"

    @method("Reload")
    def reload(self, _call: Call) -> None:
        self.touch()

    @method("setCustomValue", privilege=None)
    def set_custom_value(self, call: Call, key: str, value: str) -> None:
        call.require("Global.SetCustomField", self)
        self.vcenter.custom_fields.set_by_name(self, key, value)
