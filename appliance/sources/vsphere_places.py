"""The places of a vSphere inventory: three passes of the collector, whatever its size.

Thread model: a function; it blocks.
"""

from __future__ import annotations

from appliance.sources.host_places import OWN_PREFIX, DatastoreOffer, HostPlaces
from appliance.sources.vsphere_errors import as_appliance_errors
from appliance.sources.vsphere_host import VsphereHost
from vmware.datastores import list_datastores
from vmware.networks import list_networks
from vmware.place_names import list_place_names


def places_of(host: VsphereHost) -> HostPlaces:
    """Raises: as `vsphere_errors`."""
    with as_appliance_errors(host.name):
        datastores = list_datastores(host.session)
        networks = list_networks(host.session)
        names = list_place_names(host.session)
    free = {
        each.name: each.free_bytes
        for each in sorted(datastores, key=lambda each: each.free_bytes)
        if each.accessible and not each.name.startswith(OWN_PREFIX)
    }
    offered = {each.name for each in networks if not each.name.startswith(OWN_PREFIX)}
    return HostPlaces(
        networks=tuple(sorted(offered)),
        datastores=tuple(
            DatastoreOffer(name=name, free_bytes=free_bytes)
            for name, free_bytes in sorted(free.items())
        ),
        machines=names.hosts,
        folders=names.folders,
        pools=names.pools,
    )
