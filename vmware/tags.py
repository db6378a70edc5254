"""Tags of VMs by name: category, tag, and which VMs carry one.

Ids of tags mean nothing on another vCenter, so everything here speaks names. Names of tags and
categories are read once per `Tags`. One thread at a time.
Source: vSphere Automation API reference, `cis/tagging`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vmware.errors import ObjectGoneError, ProtocolError
from vmware.rest import RestSession

_BATCH = 200  # VMs asked for in one request
_TAGGING = "/cis/tagging"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """A group of tags; `cardinality` SINGLE or MULTIPLE per object."""

    name: str
    description: str
    cardinality: str
    associable_types: tuple[str, ...]  # empty: any


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag with what it takes to make it again elsewhere."""

    name: str
    description: str
    category: Category


class Tags:
    """The tags of one vCenter."""

    def __init__(self, rest: RestSession) -> None:
        self._rest = rest
        self._tags: dict[str, Tag] = {}
        self._categories: dict[str, Category] = {}

    def of_vms(self, morefs: Sequence[str]) -> Mapping[str, tuple[Tag, ...]]:
        """Tags by VM id, each list by category and name; a VM without tags has an empty one."""
        found: dict[str, tuple[Tag, ...]] = {moref: () for moref in morefs}
        for start in range(0, len(morefs), _BATCH):
            objects = [
                {"type": "VirtualMachine", "id": moref} for moref in morefs[start : start + _BATCH]
            ]
            answer = self._rest.act(
                "read tags of VMs",
                f"{_TAGGING}/tag-association",
                "list-attached-tags-on-objects",
                {"object_ids": objects},
            )
            for item in _dicts(answer):
                moref = _text(item.get("object_id"), "id")
                tags = {self._tag(identifier) for identifier in _texts(item.get("tag_ids"))}
                present = (tag for tag in tags if tag is not None)
                found[moref] = tuple(sorted(present, key=lambda tag: (tag.category.name, tag.name)))
        return found

    def vms_with(self, name: str) -> list[str]:
        """Ids of the VMs that carry the tag `name` or `category/name`, sorted; maybe none."""
        morefs: set[str] = set()
        for identifier in _texts(self._rest.get("list tags", f"{_TAGGING}/tag")):
            tag = self._tag(identifier)
            if tag is None or name not in (tag.name, f"{tag.category.name}/{tag.name}"):
                continue
            answer = self._rest.act(
                f"list what has the tag {name}",
                self._rest.item(f"{_TAGGING}/tag-association", identifier),
                "list-attached-objects",
                {},
            )
            morefs |= {
                _text(item, "id") for item in _dicts(answer) if item.get("type") == "VirtualMachine"
            }
        return sorted(morefs)

    def attach(self, vm_moref: str, category: str, name: str) -> bool:
        """Give the VM the tag `name` of `category`; False when there is no such tag."""
        for identifier in _texts(self._rest.get("list tags", f"{_TAGGING}/tag")):
            tag = self._tag(identifier)
            if tag is not None and (tag.category.name, tag.name) == (category, name):
                self._rest.act(
                    f"attach the tag {name}",
                    self._rest.item(f"{_TAGGING}/tag-association", identifier),
                    "attach",
                    {"object_id": {"type": "VirtualMachine", "id": vm_moref}},
                )
                return True
        return False

    def _tag(self, identifier: str) -> Tag | None:
        """None when it was deleted meanwhile."""
        if identifier not in self._tags:
            path = self._rest.item(f"{_TAGGING}/tag", identifier)
            try:
                found = self._rest.get("read a tag", path)
                category = self._category(_text(found, "category_id"))
            except ObjectGoneError:
                return None
            self._tags[identifier] = Tag(
                name=_text(found, "name"),
                description=_text(found, "description"),
                category=category,
            )
        return self._tags[identifier]

    def _category(self, identifier: str) -> Category:
        if identifier not in self._categories:
            path = self._rest.item(f"{_TAGGING}/category", identifier)
            found = self._rest.get("read a tag category", path)
            self._categories[identifier] = Category(
                name=_text(found, "name"),
                description=_text(found, "description"),
                cardinality=_text(found, "cardinality"),
                associable_types=tuple(sorted(_texts(found.get("associable_types")))),
            )
        return self._categories[identifier]


def _text(document: Any, name: str) -> str:
    value = document.get(name, "") if isinstance(document, dict) else None
    if not isinstance(value, str):
        raise ProtocolError(f"tagging: {name!r} is missing in the answer")
    return value


def _texts(document: Any) -> list[str]:
    """An absent list is an empty one."""
    if document is None:
        return []
    if not isinstance(document, list) or not all(isinstance(item, str) for item in document):
        raise ProtocolError("tagging: the answer is no list of names")
    return document


def _dicts(document: Any) -> list[dict[str, Any]]:
    if document is None:
        return []
    if not isinstance(document, list) or not all(isinstance(item, dict) for item in document):
        raise ProtocolError("tagging: the answer is no list of objects")
    return document
