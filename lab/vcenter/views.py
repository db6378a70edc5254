"""ViewManager and its views: lists of objects that belong to a session and end with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, ManagedEntity, computed, method
from lab.vcenter.property_selection import invalid_argument

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter


class View(LabObject):
    vim_type = vim.view.View
    moid_prefix = "session[view]"

    @method("DestroyView", privilege="System.View")
    def destroy(self, _call: Call) -> None:
        self.unregister()


class ContainerView(View):
    vim_type = vim.view.ContainerView

    def __init__(
        self, vcenter: LabVcenter, container: ManagedEntity, types: list[Any], recursive: bool
    ) -> None:
        super().__init__(vcenter)
        self._container = container
        self._types = tuple(types)
        self.set(container=container.ref, type=list(types), recursive=recursive)

    @computed("view")
    def _view(self, call: Call | None) -> Any:
        recursive = bool(self.get("recursive"))
        seen: set[str] = set()
        refs = []
        pending = list(reversed(self._container.view_children()))
        while pending:
            entity = pending.pop()
            if entity.moid in seen:
                continue
            seen.add(entity.moid)
            if call is not None and not call.may("System.View", entity):
                continue
            if not self._types or issubclass(entity.vim_type, self._types):
                refs.append(entity.ref)
            if recursive:
                pending.extend(reversed(entity.view_children()))
        return refs


class ListView(View):
    vim_type = vim.view.ListView

    def show(self, refs: list[Any]) -> None:
        self.set(view=list(refs))

    def _known(self, refs: list[Any]) -> list[Any]:
        return [ref for ref in refs if self.vcenter.registry.get(ref._moId) is None]

    @method("ModifyListView", privilege="System.View")
    def modify(self, _call: Call, added: list[Any], removed: list[Any]) -> Any:
        gone = {ref._moId for ref in removed}
        unresolved = self._known(added)
        bad = {ref._moId for ref in unresolved}
        kept = {ref._moId: ref for ref in self.get("view") or [] if ref._moId not in gone}
        kept.update({ref._moId: ref for ref in added if ref._moId not in bad})
        self.show(list(kept.values()))
        return unresolved

    @method("ResetListView", privilege="System.View")
    def reset(self, _call: Call, refs: list[Any]) -> Any:
        unresolved = self._known(refs)
        bad = {ref._moId for ref in unresolved}
        self.show([ref for ref in refs if ref._moId not in bad])
        return unresolved


class ViewManager(LabObject):
    vim_type = vim.view.ViewManager

    @computed("viewList")
    def _view_list(self, call: Call | None) -> Any:
        views = self.vcenter.registry.all(View)
        return [view.ref for view in views if call and view.owner is call.session]

    @method("CreateContainerView")
    def create_container_view(
        self, call: Call, container: Any, types: list[Any], recursive: bool
    ) -> Any:
        for kind in types:
            if not issubclass(kind, vim.ManagedEntity):
                raise invalid_argument("type", f"{kind.__name__} is not an entity.")
        entity = call.resolve(container, ManagedEntity)
        return self._keep(call, ContainerView(self.vcenter, entity, types, recursive))

    @method("CreateListView")
    def create_list_view(self, call: Call, refs: list[Any]) -> Any:
        view = ListView(self.vcenter)
        view.show(refs)
        return self._keep(call, view)

    def _keep(self, call: Call, view: View) -> Any:
        view.owner = call.authenticated()
        return view.ref
