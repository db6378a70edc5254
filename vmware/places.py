"""Names and places of inventory objects: folder paths, datacenters, hosts.

Paths are inventory paths as `dcPath` and `FindByInventoryPath` take them: from below the root
folder, joined by `/`, each name as the server spells it (it escapes `/`, `\\` and `%` as `%2f`,
`%5c` and `%25`). Not thread-safe: a `Places` belongs to one reader.
Source: vSphere API reference, ManagedEntity.name and .parent, VirtualApp.parentFolder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmware.properties import Record, Wanted, read_some
from vmware.session import Session

_DEPTH_MAX = 64  # folders may nest; a cycle must not hang us

#: What `Places` is built from.
PLACES: tuple[Wanted, ...] = (
    Wanted(kind=vim.Folder, paths=("name", "parent")),
    Wanted(kind=vim.Datacenter, paths=("name", "parent")),
    Wanted(kind=vim.ComputeResource, paths=("name", "parent")),
    Wanted(kind=vim.HostSystem, paths=("name", "parent")),
    Wanted(kind=vim.ResourcePool, paths=("name", "parent")),
    Wanted(kind=vim.VirtualApp, paths=("name", "parent", "parentFolder")),
)
_KINDS: dict[str, type] = {
    "ClusterComputeResource": vim.ClusterComputeResource,
    "ComputeResource": vim.ComputeResource,
    "Datacenter": vim.Datacenter,
    "Folder": vim.Folder,
    "HostSystem": vim.HostSystem,
    "ResourcePool": vim.ResourcePool,
    "VirtualApp": vim.VirtualApp,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A managed object by type and id; empty `moref`: none."""

    kind: str
    moref: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One object above VMs."""

    kind: str
    moref: str
    name: str
    parent: Reference  # of a vApp: its folder


NOWHERE = Reference(kind="", moref="")


def plain_name(name: str) -> str:
    """A name as people wrote it: the server's three escapes undone."""
    return re.sub(r"%(2f|2F|5c|5C|25)", lambda found: chr(int(found[1], 16)), name)


def reference(record: Record, path: str) -> Reference:
    element = record.values.get(path)
    if element is None:
        return NOWHERE
    return Reference(kind=element.get("type", ""), moref=element.text or "")


def place_of(record: Record) -> Place:
    folder = reference(record, "parentFolder")
    return Place(
        kind=record.kind,
        moref=record.moref,
        name=record.text("name"),
        parent=folder if folder.moref else reference(record, "parent"),
    )


class Places:
    """The objects above VMs, by id."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._places = {place.moref: place for place in places}

    def learn(self, session: Session, references: Iterable[Reference]) -> None:
        """Read these and everything above them: one call per level of the inventory."""
        unknown = self._unknown(references)
        for _ in range(_DEPTH_MAX):
            if not unknown:
                return
            objects: list[Any] = [session.object(_KINDS[item.kind], item.moref) for item in unknown]
            found = read_some(session, "read names of the inventory", objects, PLACES, place_of)
            self._places |= {place.moref: place for place in found}
            unknown = self._unknown(place.parent for place in found)

    def name(self, moref: str) -> str:
        """Empty when it could not be read."""
        place = self._places.get(moref)
        return plain_name(place.name) if place else ""

    def above(self, moref: str, *kinds: str) -> Place | None:
        """The nearest object of one of these kinds from `moref` upwards, itself included."""
        return next((place for place in self._upwards(moref) if place.kind in kinds), None)

    def path(self, moref: str) -> str:
        """Inventory path; empty for the root folder or when the object is not known."""
        names = [place.name for place in self._upwards(moref) if place.parent.moref]
        return "/".join(reversed(names))

    def _upwards(self, moref: str) -> Iterable[Place]:
        for _ in range(_DEPTH_MAX):
            place = self._places.get(moref)
            if place is None:
                return
            yield place
            moref = place.parent.moref

    def _unknown(self, references: Iterable[Reference]) -> set[Reference]:
        return {
            item for item in references if item.kind in _KINDS and item.moref not in self._places
        }
