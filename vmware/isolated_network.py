"""A network that leads nowhere, on one host: a standard switch without uplink and its port group.

Switch and port group have one name, which is our mark: neither has room for any other. What is
removed must be called so and have no uplink, so a network that somebody else gave this name is
never touched. VMs of one isolated network run on one host. Both calls are idempotent.
Thread model: functions; they block and keep no state.
Source: design notes section 5; vSphere API reference, HostNetworkSystem.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from pyVmomi import vim

from vmware.errors import InvalidRequestError, ObjectGoneError, RefusedError, UnsupportedError
from vmware.networks import NetworkInfo
from vmware.properties import fetch_one
from vmware.session import Session

NAME_CHARACTERS_MAX = 32
_PORTS = 128


def isolated_network(name: str) -> NetworkInfo:
    """What an adapter is connected to; it may not have been made yet."""
    return NetworkInfo(
        moref="",
        kind="standard",
        name=name,
        portgroup_key="",
        switch_name=name,
        switch_uuid="",
        vlan="",
        opaque_id="",
        opaque_type="",
    )


def add_isolated_network(session: Session, host_moref: str, name: str) -> NetworkInfo:
    """Make it, or find it made.

    Raises:
        RefusedError: something else on the host is called so.
        VsphereError.
    """
    if not 0 < len(name) <= NAME_CHARACTERS_MAX:
        raise ValueError(f"no name of a switch: {name!r}")
    system = _system(session, host_moref)
    switch = vim.host.VirtualSwitch.Specification(numPorts=_PORTS)  # no bridge: no uplink
    group = vim.host.PortGroup.Specification(
        name=name, vlanId=0, vswitchName=name, policy=vim.host.NetworkPolicy()
    )
    what = f"make the isolated network {name}"
    with suppress(InvalidRequestError):  # it is there: looked at below
        session.call(what, system.AddVirtualSwitch, name, switch)
    with suppress(InvalidRequestError):
        session.call(what, system.AddPortGroup, group)
    if not _ours(session, host_moref, name):
        raise RefusedError(f"{what}: it did not come to be as asked")
    return isolated_network(name)


def remove_isolated_network(session: Session, host_moref: str, name: str) -> None:
    """Take it away; one that is gone, or is not ours, is left alone.

    Raises: BusyError: a VM is attached to it. VsphereError.
    """
    system = _system(session, host_moref)
    what = f"remove the isolated network {name}"
    if not _ours(session, host_moref, name):
        return
    with suppress(ObjectGoneError):
        session.call(what, system.RemovePortGroup, name)
    with suppress(ObjectGoneError):
        session.call(what, system.RemoveVirtualSwitch, name)


def _ours(session: Session, host_moref: str, name: str) -> bool:
    """A switch of this name is there, has no uplink, and no port groups but that of its name."""
    path = "networkInfo"  # the host's `config.network` may be older
    what = f"look at the networks of {host_moref}"
    network = fetch_one(session, what, _system(session, host_moref), (path,)).values.get(path)
    switches = [one for one in getattr(network, "vswitch", None) or () if one.name == name]
    groups = getattr(network, "portgroup", None) or ()
    strangers = [
        one.spec.name for one in groups if (one.spec.vswitchName == name) != (one.spec.name == name)
    ]
    return len(switches) == 1 and not _has_uplink(switches[0]) and not strangers


def _has_uplink(switch: Any) -> bool:
    return bool(switch.pnic) or getattr(switch.spec, "bridge", None) is not None


def _system(session: Session, host_moref: str) -> Any:
    host = session.object(vim.HostSystem, host_moref)
    path = "configManager.networkSystem"
    found = fetch_one(session, "find the host's network system", host, (path,)).values.get(path)
    if found is None:
        raise UnsupportedError(f"{host_moref} shows no network system")
    return found
