"""Where a VM may be put, as names: hosts, folders and resource pools, to choose one from.

One pass of the collector for all three; names are as `placement.py` takes them. Datastores and
networks have readers of their own. Blocks; keeps no state.
Source: vSphere API reference, Datacenter.vmFolder: it is called `vm` and cannot be renamed.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmware.places import PLACES, Place, Places, place_of, plain_name
from vmware.properties import read_all
from vmware.session import Session

_VM_FOLDER = "vm"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceNames:
    """Each by name; `folders` and `pools` are inventory paths, `folders` those for VMs."""

    hosts: tuple[str, ...]
    folders: tuple[str, ...]
    pools: tuple[str, ...]


def list_place_names(session: Session) -> PlaceNames:
    """All that the account may see. Raises VsphereError."""
    known = read_all(session, "read the places of the inventory", PLACES, place_of)
    places = Places(known)

    def of_kind(kind: str) -> list[Place]:
        return [place for place in known if place.kind == kind]

    return PlaceNames(
        hosts=tuple(sorted({plain_name(place.name) for place in of_kind("HostSystem")})),
        folders=tuple(
            sorted({places.path(each.moref) for each in of_kind("Folder") if _of_vms(places, each)})
        ),
        pools=tuple(sorted({places.path(place.moref) for place in of_kind("ResourcePool")})),
    )


def _of_vms(places: Places, folder: Place) -> bool:
    datacenter = places.above(folder.moref, "Datacenter")
    if datacenter is None:
        return False
    root = f"{places.path(datacenter.moref)}/{_VM_FOLDER}"
    path = places.path(folder.moref)
    return path == root or path.startswith(f"{root}/")
