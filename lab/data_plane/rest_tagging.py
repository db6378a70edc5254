"""The tagging service as REST operations. Source: vSphere Automation API, "cis tagging".

An object that the user may not read does not exist for him. Thread-safe as its parts are.
"""

from __future__ import annotations

from typing import Any, Protocol

from lab.data_plane.rest import Operation, RestCall, RestError
from lab.data_plane.rest_document import Document
from lab.data_plane.tags import (
    Cardinality,
    Category,
    Tag,
    TagError,
    TaggedObject,
    TagNotFoundError,
    Tags,
)


class RestInventory(Protocol):
    """What REST calls ask of the inventory. Thread-safe."""

    def visible(self, user: str, thing: TaggedObject) -> bool:
        """The object exists and the user may read it."""
        ...

    def allows(self, user: str, privilege: str, entity: str) -> bool:
        """`entity` is a moref, or "" for the root."""
        ...


class Tagging:
    """The operations of one vCenter's tagging service."""

    def __init__(self, inventory: RestInventory, tags: Tags) -> None:
        self._inventory = inventory
        self._tags = tags

    def operations(self) -> dict[tuple[str, str], Operation]:
        return {
            ("GET", "category"): self._list_categories,
            ("POST", "category"): self._create_category,
            ("GET", "category/ID"): self._get_category,
            ("DELETE", "category/ID"): self._delete_category,
            ("GET", "tag"): self._list_tags,
            ("POST", "tag"): self._create_tag,
            ("GET", "tag/ID"): self._get_tag,
            ("PATCH", "tag/ID"): self._update_tag,
            ("DELETE", "tag/ID"): self._delete_tag,
            ("list-tags-for-category", "tag"): self._tags_of_category,
            ("list-tags-for-category", "tag/ID"): self._tags_of_category,
            ("attach", "tag-association/ID"): self._attach,
            ("detach", "tag-association/ID"): self._detach,
            ("list-attached-objects", "tag-association/ID"): self._attached_objects,
            ("list-attached-tags", "tag-association"): self._attached_tags,
            ("list-attached-tags-on-objects", "tag-association"): self._tags_on_objects,
            ("list-attached-objects-on-tags", "tag-association"): self._objects_on_tags,
            ("attach-multiple-tags-to-object", "tag-association"): self._attach_many,
        }

    # categories and tags

    def _require(self, call: RestCall, privilege: str, entity: str = "") -> None:
        if not self._inventory.allows(call.user, privilege, entity):
            raise RestError("UNAUTHORIZED", f"privilege {privilege} is missing")

    def _list_categories(self, _call: RestCall) -> list[str]:
        return [category.id for category in self._tags.categories()]

    def _create_category(self, call: RestCall) -> str:
        self._require(call, "InventoryService.Tagging.CreateCategory")
        return self._tags.create_category(
            call.document.text("name"),
            description=call.document.text("description", ""),
            cardinality=Cardinality(call.document.choice("cardinality", set(Cardinality))),
            associable_types=frozenset(call.document.texts("associable_types", ())),
        ).id

    def _get_category(self, call: RestCall) -> dict[str, Any]:
        return _category_document(self._tags.category(call.id))

    def _delete_category(self, call: RestCall) -> None:
        self._require(call, "InventoryService.Tagging.DeleteCategory")
        self._tags.delete_category(call.id)

    def _list_tags(self, _call: RestCall) -> list[str]:
        return [tag.id for tag in self._tags.tags()]

    def _create_tag(self, call: RestCall) -> str:
        self._require(call, "InventoryService.Tagging.CreateTag")
        return self._tags.create_tag(
            call.document.text("category_id"),
            call.document.text("name"),
            description=call.document.text("description", ""),
        ).id

    def _get_tag(self, call: RestCall) -> dict[str, Any]:
        return _tag_document(self._tags.tag(call.id))

    def _update_tag(self, call: RestCall) -> None:
        self._require(call, "InventoryService.Tagging.EditTag")
        name, description = call.document.text("name", ""), call.document.text("description", "")
        self._tags.rename_tag(call.id, name or None, description or None)

    def _delete_tag(self, call: RestCall) -> None:
        self._require(call, "InventoryService.Tagging.DeleteTag")
        self._tags.delete_tag(call.id)

    def _tags_of_category(self, call: RestCall) -> list[str]:
        category_id = call.path_id or call.document.text("category_id")
        return [tag.id for tag in self._tags.tags(category_id)]

    # associations

    def _thing(self, call: RestCall) -> TaggedObject:
        """The object of the call; one that the user cannot see does not exist for him."""
        thing = _object(call.document.inner("object_id"))
        if not self._inventory.visible(call.user, thing):
            raise RestError("UNAUTHORIZED", "no such object, or no right to read it")
        return thing

    def _attach(self, call: RestCall) -> None:
        thing = self._thing(call)
        self._require(call, "InventoryService.Tagging.AttachTag", thing.id)
        self._tags.attach(call.id, thing)

    def _detach(self, call: RestCall) -> None:
        thing = self._thing(call)
        self._require(call, "InventoryService.Tagging.AttachTag", thing.id)
        self._tags.detach(call.id, thing)

    def _attach_many(self, call: RestCall) -> dict[str, Any]:
        thing = self._thing(call)
        self._require(call, "InventoryService.Tagging.AttachTag", thing.id)
        errors = []
        for tag_id in call.document.texts("tag_ids"):
            try:
                self._tags.attach(tag_id, thing)
            except TagError as error:
                errors.append({"id": tag_id, "default_message": str(error), "args": []})
        return {"success": not errors, "error_messages": errors}

    def _attached_tags(self, call: RestCall) -> list[str]:
        return self._tags.of_object(self._thing(call))

    def _tags_on_objects(self, call: RestCall) -> list[dict[str, Any]]:
        """Objects the user cannot see, and those without tags, are left out."""
        things = [_object(inner) for inner in call.document.inners("object_ids")]
        found = [
            (thing, self._tags.of_object(thing))
            for thing in things
            if self._inventory.visible(call.user, thing)
        ]
        return [
            {"object_id": _object_document(thing), "tag_ids": tag_ids}
            for thing, tag_ids in found
            if tag_ids
        ]

    def _attached_objects(self, call: RestCall) -> list[dict[str, str]]:
        return self._visible_objects(call, call.id)

    def _objects_on_tags(self, call: RestCall) -> list[dict[str, Any]]:
        found = []
        for tag_id in call.document.texts("tag_ids"):
            try:
                objects = self._visible_objects(call, tag_id)
            except TagNotFoundError:
                continue  # as the product does: what is not there is left out
            found.append({"tag_id": tag_id, "object_ids": objects})
        return found

    def _visible_objects(self, call: RestCall, tag_id: str) -> list[dict[str, str]]:
        return [
            _object_document(thing)
            for thing in self._tags.objects_of(tag_id)
            if self._inventory.visible(call.user, thing)
        ]


def _object(document: Document) -> TaggedObject:
    return TaggedObject(document.text("type"), document.text("id"))


def _object_document(thing: TaggedObject) -> dict[str, str]:
    return {"type": thing.type, "id": thing.id}


def _category_document(category: Category) -> dict[str, Any]:
    return {
        "id": category.id,
        "name": category.name,
        "description": category.description,
        "cardinality": category.cardinality.value,
        "associable_types": sorted(category.associable_types),
        "used_by": [],
    }


def _tag_document(tag: Tag) -> dict[str, Any]:
    return {
        "id": tag.id,
        "category_id": tag.category_id,
        "name": tag.name,
        "description": tag.description,
        "used_by": [],
    }
