"""Categories, tags, and which objects carry them.

Invariants: category names are unique, tag names unique within their category; a category of
cardinality SINGLE gives an object at most one tag; an empty set of associable types means all.
Thread-safe. Source: vSphere Automation API, "cis tagging"; design notes on vSphere, section 1.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, replace
from enum import StrEnum

MAX_NAME_CHARS = 256


class TagError(Exception):
    """`kind` is the error type of the REST answers."""

    kind = "INVALID_ARGUMENT"


class TagNotFoundError(TagError):
    kind = "NOT_FOUND"


class TagExistsError(TagError):
    kind = "ALREADY_EXISTS"


class Cardinality(StrEnum):
    SINGLE = "SINGLE"
    MULTIPLE = "MULTIPLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    id: str
    name: str
    description: str
    cardinality: Cardinality
    associable_types: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    id: str
    category_id: str
    name: str
    description: str


@dataclass(frozen=True, slots=True, order=True)
class TaggedObject:
    """An inventory object, as `{"type": "VirtualMachine", "id": "vm-1"}`."""

    type: str
    id: str


class Tags:
    """The tagging service of one vCenter."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._categories: dict[str, Category] = {}
        self._tags: dict[str, Tag] = {}
        self._attached: dict[TaggedObject, set[str]] = {}

    # categories

    def create_category(
        self,
        name: str,
        *,
        description: str = "",
        cardinality: Cardinality = Cardinality.SINGLE,
        associable_types: frozenset[str] = frozenset(),
    ) -> Category:
        """Raises TagExistsError, TagError."""
        category = Category(
            id=_urn("Category"),
            name=_checked(name),
            description=description,
            cardinality=cardinality,
            associable_types=associable_types,
        )
        with self._lock:
            if any(other.name == name for other in self._categories.values()):
                raise TagExistsError(f"category {name!r} exists")
            self._categories[category.id] = category
        return category

    def category(self, category_id: str) -> Category:
        """Raises TagNotFoundError."""
        with self._lock:
            return self._category(category_id)

    def categories(self) -> list[Category]:
        with self._lock:
            return list(self._categories.values())

    def delete_category(self, category_id: str) -> None:
        """Its tags go with it. Raises TagNotFoundError."""
        with self._lock:
            self._category(category_id)
            for tag in [tag for tag in self._tags.values() if tag.category_id == category_id]:
                self._forget_tag(tag.id)
            del self._categories[category_id]

    # tags

    def create_tag(self, category_id: str, name: str, *, description: str = "") -> Tag:
        """Raises TagNotFoundError, TagExistsError, TagError."""
        tag = Tag(
            id=_urn("Tag"), category_id=category_id, name=_checked(name), description=description
        )
        with self._lock:
            self._category(category_id)
            self._refuse_double(category_id, name)
            self._tags[tag.id] = tag
        return tag

    def rename_tag(self, tag_id: str, name: str | None, description: str | None) -> None:
        """None leaves as it is. Raises TagNotFoundError, TagExistsError, TagError."""
        with self._lock:
            tag = self._tag(tag_id)
            if name is not None and name != tag.name:
                self._refuse_double(tag.category_id, _checked(name))
                tag = replace(tag, name=name)
            if description is not None:
                tag = replace(tag, description=description)
            self._tags[tag_id] = tag

    def tag(self, tag_id: str) -> Tag:
        """Raises TagNotFoundError."""
        with self._lock:
            return self._tag(tag_id)

    def tags(self, category_id: str | None = None) -> list[Tag]:
        """All tags, or those of one category. Raises TagNotFoundError."""
        with self._lock:
            if category_id is not None:
                self._category(category_id)
            return [tag for tag in self._tags.values() if category_id in (None, tag.category_id)]

    def delete_tag(self, tag_id: str) -> None:
        """Detached everywhere first. Raises TagNotFoundError."""
        with self._lock:
            self._tag(tag_id)
            self._forget_tag(tag_id)

    # associations

    def attach(self, tag_id: str, thing: TaggedObject) -> None:
        """Idempotent. Raises TagNotFoundError; TagError for a type or number that may not be."""
        with self._lock:
            tag = self._tag(tag_id)
            category = self._categories[tag.category_id]
            if category.associable_types and thing.type not in category.associable_types:
                raise TagError(f"{category.name} is not for {thing.type}")
            attached = self._attached.setdefault(thing, set())
            others = {t for t in attached if self._tags[t].category_id == category.id} - {tag_id}
            if category.cardinality is Cardinality.SINGLE and others:
                raise TagError(f"{thing.id} has a tag of {category.name} already")
            attached.add(tag_id)

    def detach(self, tag_id: str, thing: TaggedObject) -> None:
        """Idempotent. Raises TagNotFoundError."""
        with self._lock:
            self._tag(tag_id)
            self._attached.get(thing, set()).discard(tag_id)

    def of_object(self, thing: TaggedObject) -> list[str]:
        """Ids of the object's tags, sorted."""
        with self._lock:
            return sorted(self._attached.get(thing, ()))

    def objects_of(self, tag_id: str) -> list[TaggedObject]:
        """Raises TagNotFoundError."""
        with self._lock:
            self._tag(tag_id)
            return sorted(thing for thing, tags in self._attached.items() if tag_id in tags)

    def forget_object(self, moid: str) -> None:
        """The object left the inventory; its tags do not come back with its id."""
        with self._lock:
            for thing in [thing for thing in self._attached if thing.id == moid]:
                del self._attached[thing]

    # with the lock held

    def _category(self, category_id: str) -> Category:
        try:
            return self._categories[category_id]
        except KeyError:
            raise TagNotFoundError("no such category") from None

    def _tag(self, tag_id: str) -> Tag:
        try:
            return self._tags[tag_id]
        except KeyError:
            raise TagNotFoundError("no such tag") from None

    def _refuse_double(self, category_id: str, name: str) -> None:
        for other in self._tags.values():
            if (other.category_id, other.name) == (category_id, name):
                raise TagExistsError(f"tag {name!r} exists")

    def _forget_tag(self, tag_id: str) -> None:
        del self._tags[tag_id]
        for attached in self._attached.values():
            attached.discard(tag_id)


def _urn(kind: str) -> str:
    return f"urn:vmomi:InventoryService{kind}:{uuid.uuid4()}:GLOBAL"


def _checked(name: str) -> str:
    if not 0 < len(name) <= MAX_NAME_CHARS:
        raise TagError("a name has 1 to 256 characters")
    return name
