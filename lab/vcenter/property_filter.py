"""A property filter: what it has told its client, and what has changed since.

It remembers the last reported value of every property and compares by value, so a change of a
computed property is found as surely as one of a stored one.

Thread model: one WaitForUpdatesEx at a time uses a filter (the collector sees to it).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyVmomi import vmodl

from lab.vcenter.call import Call
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.property_content import Content, read_content, write_missing, write_ref
from lab.vcenter.property_path import PropertyPath
from lab.vcenter.property_selection import Selection
from lab.vcenter.soap_encode import Encoder, Write, encoder, text_of

if TYPE_CHECKING:
    from lab.vcenter.lab_vcenter import LabVcenter
    from lab.vcenter.property_collector import Conversation


@dataclass(frozen=True, slots=True)
class Update:
    """One ObjectUpdate: what of an object has changed."""

    kind: str  # enter, modify, leave
    ref: Any
    values: tuple[tuple[PropertyPath, Any], ...]
    missing: tuple[tuple[PropertyPath, Any], ...]

    def write(self, write: Write, encode: Encoder) -> None:
        write(f"<objectSet><kind>{self.kind}</kind>")
        write_ref(write, "obj", self.ref)
        for path, value in self.values:
            write(f"<changeSet><name>{text_of(path.text)}</name><op>assign</op>")
            if value is not None:
                encode.any(write, "val", value, path.declared)
            write("</changeSet>")
        write_missing(write, encode, self.missing)
        write("</objectSet>")


class PropertyFilter(LabObject):
    vim_type = vmodl.query.PropertyCollector.Filter
    moid_prefix = "session[filter]"

    def __init__(
        self, vcenter: LabVcenter, conversation: Conversation, spec: Any, partial_updates: bool
    ) -> None:
        self.selection = Selection(spec)
        super().__init__(vcenter)
        self._conversation = conversation
        self._spec = spec
        self._partial = partial_updates
        self._told: dict[str, tuple[Any, Content]] = {}
        self._seen = 0

    @computed("spec")
    def _spec_property(self, _call: Call | None) -> Any:
        return self._spec

    @computed("partialUpdates")
    def _partial_property(self, _call: Call | None) -> Any:
        return self._partial

    @method("DestroyPropertyFilter", privilege="System.View")
    def destroy(self, _call: Call) -> None:
        self._conversation.drop(self)
        self.unregister()

    def restart(self) -> None:
        """Forget what was told: the client starts again with an empty version."""
        self._told.clear()
        self._seen = 0

    def updates(self, call: Call, limit: int) -> tuple[list[Update], bool]:
        """Return up to `limit` updates, and whether there are more. They count as told."""
        now = self.vcenter.registry.version
        updates: list[Update] = []
        for update in self._changes(call):
            if len(updates) >= limit:
                return updates, True
            updates.append(update)
            self._remember(update)
        self._seen = now
        return updates, False

    def _remember(self, update: Update) -> None:
        moid = update.ref._moId
        if update.kind == "leave":
            del self._told[moid]

    def _changes(self, call: Call) -> Iterator[Update]:
        selected = {entry.thing.moid: entry for entry in self.selection.evaluate(call)}
        for moid, (ref, _content) in list(self._told.items()):
            if moid not in selected:
                yield Update("leave", ref, (), ())
        encode = encoder(call.version)
        for moid, entry in selected.items():
            told = self._told.get(moid)
            if told is not None and entry.thing.changed_at <= self._seen:
                continue
            content = read_content(entry.thing, entry.paths, call)
            if told is None:
                values = tuple((path, value) for path, value in content.values if value is not None)
                yield Update("enter", entry.thing.ref, values, content.missing)
                self._told[moid] = (entry.thing.ref, content)
                continue
            changed = _differences(told[1], content, encode)
            if changed:
                yield Update("modify", entry.thing.ref, changed, ())
            self._told[moid] = (entry.thing.ref, content)


def _differences(
    old: Content, new: Content, encode: Encoder
) -> tuple[tuple[PropertyPath, Any], ...]:
    before = {path.text: value for path, value in old.values}
    return tuple(
        (path, value)
        for path, value in new.values
        if path.text not in before or not _same(before[path.text], value, path, encode)
    )


def _same(old: Any, new: Any, path: PropertyPath, encode: Encoder) -> bool:
    if old is new:
        return True
    if old is None or new is None:
        return False
    return _xml(old, path, encode) == _xml(new, path, encode)


def _xml(value: Any, path: PropertyPath, encode: Encoder) -> str:
    parts: list[str] = []
    encode.any(parts.append, "val", value, path.declared)
    return "".join(parts)
