"""Which network each network adapter of a VM gets, when it is built again somewhere else.

Networks are matched by name: ids mean nothing elsewhere. Nothing is guessed: an adapter whose
network is not there is an error that names it, unless the operator said what to connect it to, or
to leave it unconnected (it is then given some network, as it must have one, and starts
disconnected). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmware.captured_vm import CapturedNic
from vmware.errors import VsphereError
from vmware.networks import NetworkInfo


class NetworkChoiceError(VsphereError):
    """A network of the VM is not to be had where it is restored to. Map it to another one, or leave
    its adapter unconnected."""

    code = "vsphere.network-choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenNetwork:
    network: NetworkInfo
    start_connected: bool


def choose_networks(
    nics: Sequence[CapturedNic],
    offered: Sequence[NetworkInfo],
    mapping: Mapping[str, str],
    unconnected: frozenset[str] = frozenset(),
) -> Mapping[int, ChosenNetwork]:
    """The network of each adapter, by the adapter's key.

    Args:
        offered: what the host that is to run the VM can reach.
        mapping: old name -> new name. Old names are those of networks, of adapters (“Network
            adapter 1”) or their addresses; new ones those of networks.
        unconnected: old names of what is to stay unconnected.

    Raises:
        NetworkChoiceError: a network is not there, or two are; an old name is unknown.
    """
    known = {name for nic in nics for name in nic.names}
    for old in sorted({*mapping, *unconnected} - known):
        raise NetworkChoiceError(
            f"the VM has no network {old!r}, but {', '.join(sorted(known)) or 'none'}"
        )
    return {nic.key: _chosen(nic, offered, mapping, unconnected) for nic in nics}


def _chosen(
    nic: CapturedNic,
    offered: Sequence[NetworkInfo],
    mapping: Mapping[str, str],
    unconnected: frozenset[str],
) -> ChosenNetwork:
    if unconnected & set(nic.names):
        if not offered:
            raise NetworkChoiceError(f"{nic.label}: there is no network at all to attach it to")
        # a standard one, if there is any: it holds no port
        first = min(offered, key=lambda item: (item.kind != "standard", item.name))
        return ChosenNetwork(network=first, start_connected=False)
    wanted = next((mapping[name] for name in nic.names if name in mapping), nic.network_name)
    found = [item for item in offered if item.name == wanted]
    if len(found) > 1:
        found = [item for item in found if item.kind == nic.network_kind] or found
    if len(found) == 1:
        return ChosenNetwork(network=found[0], start_connected=nic.start_connected)
    there = ", ".join(sorted({item.name for item in offered})) or "none"
    why = f"{len(found)} networks are called so" if found else f"there are: {there}"
    raise NetworkChoiceError(f"{nic.label}: no network {wanted!r} to connect it to ({why})")
