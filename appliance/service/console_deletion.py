"""Deletion at the appliance's own console, where no daemon need run."""

from __future__ import annotations

from pathlib import Path

from appliance.catalog.catalog import Catalog
from appliance.repository.repository import Repository
from appliance.service.deletion import Deletion
from appliance.service.points_in_use import points_in_use


def console_deletion(catalog: Catalog, repository: Repository, home: Path) -> Deletion:
    return Deletion(catalog, repository, lambda: points_in_use(home))
