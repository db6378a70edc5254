"""Rules for the names of inventory objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyVmomi import vim, vmodl

if TYPE_CHECKING:
    from lab.vcenter.managed_object import ManagedEntity

NAME_LIMIT = 80


def plain_name(name: str) -> str:
    """A name of a request as people wrote it: its escape sequences undone."""
    return name.replace("%2f", "/").replace("%5c", "\\").replace("%25", "%")


def check_new_name(
    parent: ManagedEntity | None, name: str, *, renamed: ManagedEntity | None = None
) -> None:
    """Raises InvalidName, or DuplicateName for one that a sibling has."""
    if not name or len(name) > NAME_LIMIT:
        raise vim.fault.InvalidName(msg=f"The name '{name}' is invalid.", name=name)
    if parent is None:
        raise vmodl.fault.NotSupported(msg="The root folder keeps its name.")
    for sibling in parent.children():
        if sibling is not renamed and sibling.name == name:
            raise vim.fault.DuplicateName(
                msg=f"The name '{name}' already exists.", name=name, object=sibling.ref
            )
