"""The places of a Hyper-V host: its virtual switches.

Where VHDX files go is a folder of the host, which nobody lists.

Thread model: a function; it blocks.
"""

from __future__ import annotations

from appliance.sources.host_places import OWN_PREFIX, HostPlaces
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_host import HypervHost
from hyperv.new_vm import list_switches
from hyperv.patience import Patience


def places_of(host: HypervHost) -> HostPlaces:
    """Raises: as `hyperv_errors`."""
    with hyperv_calls(host.name):
        found = list_switches(host.session, Patience())
    return HostPlaces(
        networks=tuple(sorted({name for name in found if not name.startswith(OWN_PREFIX)}))
    )
