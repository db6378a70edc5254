"""Recovery points and the repository they are in."""

from __future__ import annotations

from typing import Any

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.api.routes.approvals import AskedShown, asked_shown
from appliance.base.ids import parse_point_id
from appliance.repository.manifest import Manifest
from appliance.repository.stats import repository_stats

table = RouteTable("points")


class PointShown(Shown):
    point_id: str
    vm: str
    created_at: AwareDatetime
    consistency: str
    parent: str | None
    source: str
    disk_count: int
    size_bytes: int
    stored_bytes: int


class PointDisk(Shown):
    number: int
    label: str
    size_bytes: int
    root_hex: str
    read_bytes: int
    changed_bytes: int
    new_bytes: int
    stored_bytes: int


class PointDetail(PointShown):
    disks: list[PointDisk]
    written_by: str


class PointQuery(Body):
    vm: str | None = Field(default=None, max_length=255)
    before: str | None = Field(default=None, max_length=40)
    limit: int = Field(default=100, ge=1, le=1000)


class RepositoryShown(Shown):
    point_count: int
    vm_count: int
    disk_bytes: int
    referenced_bytes: int
    unique_bytes: int
    chunk_count: int
    stored_bytes: int
    pack_count: int
    deduplication: float
    compression: float


@table.add("GET", "/points", Permission.VIEW, query=PointQuery, response=list[PointShown])
def list_points(call: Call) -> list[PointShown]:
    """Recovery points, newest first; `before` goes on after a page."""
    query = call.query_as(PointQuery)
    found = call.services.catalog.points.page(vm=query.vm, before=query.before, limit=query.limit)
    return [PointShown.model_validate(each) for each in found]


@table.add("GET", "/points/{point}", Permission.VIEW, response=PointDetail)
def show_point(call: Call) -> PointDetail:
    """One recovery point with its disks."""
    manifest = call.services.repository.points.get(call.path["point"])
    disks = [PointDisk.model_validate(disk) for disk in manifest.disks]
    return PointDetail(**_fields(manifest), disks=disks, written_by=manifest.written_by)


@table.add("DELETE", "/points/{point}", Permission.DELETE, response=AskedShown)
def forget_point(call: Call) -> AskedShown:
    """Forget a recovery point; or ask for it where a second administrator is demanded."""
    point = parse_point_id(call.path["point"])
    return asked_shown(call.services.deletion.forget([point], by=call.caller.behind))


@table.add("GET", "/repository", Permission.VIEW, response=RepositoryShown)
def show_repository(call: Call) -> RepositoryShown:
    """What the points refer to, and what is stored for it."""
    stats = call.services.figures.fresh() or repository_stats(call.services.repository)
    return RepositoryShown.model_validate(stats)


def _fields(manifest: Manifest) -> dict[str, Any]:
    return {
        "point_id": manifest.point_id,
        "vm": manifest.vm,
        "created_at": manifest.created_at,
        "consistency": manifest.consistency,
        "parent": manifest.parent,
        "source": manifest.source,
        "disk_count": len(manifest.disks),
        "size_bytes": manifest.size_bytes,
        "stored_bytes": sum(disk.stored_bytes for disk in manifest.disks),
    }
