"""CustomFieldsManager: custom attributes, defined for a type of entity or for all."""

from __future__ import annotations

import itertools
from typing import Any

from pyVmomi import vim, vmodl

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method
from lab.vcenter.registry import Registry


class CustomFieldsManager(LabObject):
    vim_type = vim.CustomFieldsManager

    _numbers = itertools.count(101)

    @computed("field")
    def _field(self, _call: Call | None) -> Any:
        return list(self._fields().values())

    def _fields(self) -> dict[int, Any]:
        fields: dict[int, Any] = self.__dict__.setdefault("_defined", {})
        return fields

    def fields_for(self, entity: ManagedEntity) -> list[Any]:
        return [
            field
            for field in self._fields().values()
            if field.managedObjectType is None
            or issubclass(entity.vim_type, field.managedObjectType)
        ]

    @method("AddCustomFieldDef")
    def add(self, _call: Call, name: str, kind: Any, policy: Any, field_policy: Any) -> Any:
        if not name:
            raise vmodl.fault.InvalidArgument(msg="The name is empty.", invalidProperty="name")
        for field in self._fields().values():
            if field.name == name and field.managedObjectType in (kind, None):
                raise vim.fault.DuplicateName(
                    msg=f"The name '{name}' already exists.", name=name, object=self.ref
                )
        field = vim.CustomFieldsManager.FieldDef(
            key=next(self._numbers),
            name=name,
            type=str,
            managedObjectType=kind,
            fieldDefPrivileges=policy,
            fieldInstancePrivileges=field_policy,
        )
        self._fields()[field.key] = field
        self.touch()
        return field

    @method("RemoveCustomFieldDef")
    def remove(self, _call: Call, key: int) -> None:
        self._known(key)
        del self._fields()[key]
        for entity in self._registry.all(ManagedEntity):
            if entity.custom_values.pop(key, None) is not None:
                entity.touch()
        self.touch()

    @method("RenameCustomFieldDef")
    def rename(self, _call: Call, key: int, name: str) -> None:
        field = self._known(key)
        self._fields()[key] = vim.CustomFieldsManager.FieldDef(
            key=key, name=name, type=str, managedObjectType=field.managedObjectType
        )
        self.touch()

    @method("SetField")
    def set_field(self, call: Call, ref: Any, key: int, value: str) -> None:
        self._known(key)
        entity = call.resolve(ref, ManagedEntity)
        if key not in {field.key for field in self.fields_for(entity)}:
            raise vmodl.fault.InvalidArgument(
                msg="The field is not for this type.", invalidProperty="key"
            )
        self._store(entity, key, value)

    def set_by_name(self, entity: ManagedEntity, name: str, value: str) -> None:
        for field in self.fields_for(entity):
            if field.name == name:
                self._store(entity, field.key, value)
                return
        raise vmodl.fault.InvalidArgument(msg=f"There is no field {name}.", invalidProperty="key")

    def _store(self, entity: ManagedEntity, key: int, value: str) -> None:
        """An empty value takes the attribute away, as in vCenter."""
        if value:
            entity.custom_values[key] = value
        else:
            entity.custom_values.pop(key, None)
        entity.touch()

    def _known(self, key: int) -> Any:
        field = self._fields().get(key)
        if field is None:
            raise vim.fault.NotFound(msg=f"There is no field {key}.")
        return field

    @property
    def _registry(self) -> Registry:
        return self.vcenter.registry
