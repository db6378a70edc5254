"""The scripts around shares of others that the host uses.

Thread model: as `script_call`.
"""

from __future__ import annotations

from functools import partial

from lab.hyperv_host.errors import HypervError, InUseError
from lab.hyperv_host.host import HypervHost
from lab.hyperv_host.script_call import Document, Parameters, Script
from lab.hyperv_host.smb_client import Mapping, SmbClient


def network_scripts(host: HypervHost, network: SmbClient) -> dict[str, Script]:
    return {
        "map_share": Script(
            partial(_map, network), frozenset({"path", "port", "user", "password"})
        ),
        "unmap_share": Script(partial(_unmap, host, network), frozenset({"path"})),
    }


def _map(network: SmbClient, given: Parameters) -> Document:
    path = given.text("path")
    server, _, share = path.removeprefix("\\\\").partition("\\")
    if not path.startswith("\\\\") or not server or not share:
        raise HypervError(f"'{path}' is no share.")
    mapping = Mapping(
        path=path,
        server=server,
        port=given.number("port"),
        user=given.text("user"),
        password=given.text("password"),
    )
    if path not in network.mapped():
        network.map(mapping)
    return {"path": path}


def _unmap(host: HypervHost, network: SmbClient, given: Parameters) -> Document:
    path = given.text("path")
    for vm in host.vms():
        drives = [drive.path for drive in vm.settings.drives if drive.path is not None]
        if vm.machine is not None and any(one.share.lower() == path.lower() for one in drives):
            raise InUseError(f"'{path}' is in use by '{vm.settings.name}'.")
    return {"found": network.unmap(path)}
