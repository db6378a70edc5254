"""The appliance itself: how it is set, and whether that is safe."""

from __future__ import annotations

from pydantic import Field

from appliance.api.permissions import Permission
from appliance.api.route import Call, RouteTable, Shown
from appliance.api.tls import fingerprint
from appliance.base.version import __version__
from appliance.machine.settings_cache import administrator_email

table = RouteTable("appliance")


class FindingShown(Shown):
    code: str
    passed: bool
    text: str
    next_step: str
    address: str


class SettingsShown(Shown):
    version: str
    appliance_id: str
    tls_fingerprint: str
    repository: str
    repository_id: str
    encrypted: bool
    nfs_port: int
    administrator_email: str = Field(description="As deployed; empty: none was given")


@table.add("GET", "/security", Permission.VIEW, response=list[FindingShown])
def check_security(call: Call) -> list[FindingShown]:
    """What should have been done for safety; what failed comes first."""
    return [FindingShown.model_validate(each) for each in call.services.security.findings()]


@table.add("GET", "/settings", Permission.VIEW, response=SettingsShown)
def show_settings(call: Call) -> SettingsShown:
    """Version, identity, certificate and repository of this appliance."""
    services = call.services
    return SettingsShown(
        version=__version__,
        appliance_id=services.catalog.appliance_id,
        tls_fingerprint=fingerprint(services.home),
        repository=str(services.repository_path),
        repository_id=services.repository.id.hex(),
        encrypted=services.repository.config.encrypted,
        nfs_port=services.recovery.port,
        administrator_email=administrator_email(services.machine),
    )
