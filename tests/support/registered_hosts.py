"""Hosts in a catalog that nobody is going to reach."""

from __future__ import annotations

from datetime import UTC, datetime

from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostKind, HostRecord


def add_host(catalog: Catalog, name: str, *, user: str = "backup") -> None:
    record = HostRecord(
        name=name,
        kind=HostKind.VSPHERE,
        address=f"{name}.example.org",
        port=443,
        user=user,
        fingerprint="AA",
        server_id=name,
        added_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    catalog.hosts.add(record, Secret.of_text("secret"))
