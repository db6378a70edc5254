"""What there is to choose from where a VM is restored: networks, datastores, folders."""

from __future__ import annotations

from pydantic import Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown

table = RouteTable("hosts")


class DatastoreOffered(Shown):
    name: str
    free_bytes: int


class PlacesShown(Shown):
    """Of one host; with `failure` nothing of it is known, and names have to be typed."""

    host: str
    networks: tuple[str, ...] = Field(description="Of Hyper-V: virtual switches")
    datastores: tuple[DatastoreOffered, ...]
    machines: tuple[str, ...] = Field(description="ESXi hosts")
    folders: tuple[str, ...] = Field(description="Inventory paths")
    pools: tuple[str, ...] = Field(description="Inventory paths")
    failure: str | None


class PlacesQuery(Body):
    wait_s: float = Field(
        default=3.0, ge=0, le=60, description="A host that takes longer is known the next time"
    )


@table.add("GET", "/places", Permission.RESTORE, query=PlacesQuery, response=list[PlacesShown])
def list_places(call: Call) -> list[PlacesShown]:
    """Where the registered hosts could put a VM."""
    found = call.services.places.get(within_s=call.query_as(PlacesQuery).wait_s)
    return [
        PlacesShown(
            host=each.host,
            networks=each.places.networks,
            datastores=tuple(map(DatastoreOffered.model_validate, each.places.datastores)),
            machines=each.places.machines,
            folders=each.places.folders,
            pools=each.places.pools,
            failure=each.failure,
        )
        for each in found
    ]
