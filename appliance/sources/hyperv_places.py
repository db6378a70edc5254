"""The places of a Hyper-V host: its virtual switches.

Where VHDX files go is a folder of the host, which nobody lists.

Thread model: a function; it blocks.
"""

from __future__ import annotations

from pydantic import Field

from appliance.sources.host_places import OWN_PREFIX, HostPlaces
from appliance.sources.hyperv_errors import hyperv_calls
from appliance.sources.hyperv_host import HypervHost
from hyperv.script_types import Answer


class _Switch(Answer):
    id: str
    name: str
    type: str


class _Switches(Answer):
    switches: list[_Switch] = Field(max_length=4096)


def places_of(host: HypervHost) -> HostPlaces:
    """Raises: as `hyperv_errors`."""
    with hyperv_calls(host.name):
        found = host.session.call("list_switches", {}, _Switches).switches
    names = {switch.name for switch in found if not switch.name.startswith(OWN_PREFIX)}
    return HostPlaces(networks=tuple(sorted(names)))
