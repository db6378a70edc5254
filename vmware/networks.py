"""Networks as data: standard port groups, distributed ones with their switch and VLAN, opaque ones.

A NIC's backing names its network by ids that mean nothing on another vCenter; these names do.
Source: vSphere API reference, Network, DistributedVirtualPortgroup, OpaqueNetwork. Blocks; keeps no
state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pyVmomi import vim

from vmware.places import plain_name
from vmware.properties import Fetched, Wanted, fetch, fetch_all
from vmware.session import Session

_WANTED = (
    Wanted(kind=vim.Network, paths=("name",)),
    Wanted(
        kind=vim.dvs.DistributedVirtualPortgroup,
        paths=("name", "key", "config.distributedVirtualSwitch", "config.defaultPortConfig"),
    ),
    Wanted(
        kind=vim.OpaqueNetwork,
        paths=("name", "summary"),
    ),
)
_SWITCH = (Wanted(kind=vim.DistributedVirtualSwitch, paths=("name", "uuid")),)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInfo:
    """One network that a NIC can be connected to. Text that does not apply is empty."""

    moref: str
    kind: str  # standard, distributed, opaque
    name: str
    portgroup_key: str
    switch_name: str
    switch_uuid: str
    vlan: str  # `0`, `17`, `0-4094,7` (trunk), `private 5`
    opaque_id: str
    opaque_type: str


def list_networks(session: Session) -> list[NetworkInfo]:
    """All that the account may see, by name."""
    found = fetch_all(session, "read the networks", _WANTED)
    return sorted(_described(session, found), key=lambda item: (item.name, item.moref))


def read_networks(session: Session, networks: Sequence[Any]) -> list[NetworkInfo]:
    """These managed objects, such as `vm.network`.

    Raises:
        ObjectGoneError: one does not exist.
    """
    if not networks:
        return []
    return _described(session, fetch(session, "read networks", networks, _WANTED))


def _described(session: Session, found: Sequence[Fetched]) -> list[NetworkInfo]:
    path = "config.distributedVirtualSwitch"
    switches = {
        item.values[path]._GetMoId(): item.values[path] for item in found if path in item.values
    }
    named = fetch(session, "read switches", list(switches.values()), _SWITCH) if switches else []
    by_moref = {item.moref: item for item in named}
    return [_network(item, by_moref) for item in found]


def _network(item: Fetched, switches: dict[str, Fetched]) -> NetworkInfo:
    values = item.values
    switch = values.get("config.distributedVirtualSwitch")
    shown = switches.get(switch._GetMoId()) if switch is not None else None
    summary = values.get("summary")
    if isinstance(item.object, vim.dvs.DistributedVirtualPortgroup):
        kind = "distributed"
    else:
        kind = "opaque" if isinstance(item.object, vim.OpaqueNetwork) else "standard"
    return NetworkInfo(
        moref=item.moref,
        kind=kind,
        name=plain_name(values.get("name", "")),
        portgroup_key=values.get("key", ""),
        switch_name=plain_name(shown.values.get("name", "")) if shown else "",
        switch_uuid=shown.values.get("uuid", "") if shown else "",
        vlan=_vlan(values.get("config.defaultPortConfig")),
        opaque_id=getattr(summary, "opaqueNetworkId", None) or "",
        opaque_type=getattr(summary, "opaqueNetworkType", None) or "",
    )


def _vlan(port: Any) -> str:
    vlan = getattr(port, "vlan", None)
    if isinstance(vlan, vim.dvs.VmwareDistributedVirtualSwitch.TrunkVlanSpec):
        spans = (
            str(item.start) if item.start == item.end else f"{item.start}-{item.end}"
            for item in vlan.vlanId
        )
        return ",".join(spans)
    if isinstance(vlan, vim.dvs.VmwareDistributedVirtualSwitch.PvlanSpec):
        return f"private {vlan.pvlanId}"
    if isinstance(vlan, vim.dvs.VmwareDistributedVirtualSwitch.VlanIdSpec):
        return str(vlan.vlanId)
    return ""
