"""What the API's handlers work with; the daemon puts it together."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from appliance.catalog.catalog import Catalog
from appliance.machine.layout import Layout
from appliance.repository.repository import Repository
from appliance.service.deletion import Deletion
from appliance.service.inventory import InventoryCache
from appliance.service.job_service import JobService
from appliance.service.live_feed import LiveFeed
from appliance.service.notify.post import Post
from appliance.service.places import PlacesCache
from appliance.service.proofs import Proofs
from appliance.service.recovery_server import RecoveryServer
from appliance.service.recovery_service import RecoveryService
from appliance.service.repository_figures import RepositoryFigures
from appliance.service.security_check import SecurityCheck


@dataclass(slots=True, kw_only=True)
class Services:
    home: Path
    catalog: Catalog
    repository: Repository
    repository_path: Path
    recovery: RecoveryServer
    inventory: InventoryCache
    places: PlacesCache
    jobs: JobService
    recover: RecoveryService
    feed: LiveFeed
    post: Post
    deletion: Deletion
    figures: RepositoryFigures
    machine: Layout = field(default_factory=Layout)
    setup_token: str = field(default_factory=lambda: secrets.token_urlsafe(9))
    """Printed on the console; makes the first account, once."""
    on_set_up: Callable[[], None] = lambda: None
    """Called once the first account is there."""
    proofs: Proofs = field(init=False)
    security: SecurityCheck = field(init=False)

    def __post_init__(self) -> None:
        self.proofs = Proofs(self.home)
        self.security = SecurityCheck(self.catalog, self.repository, self.home, self.machine)
