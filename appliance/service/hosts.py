"""Registered hosts and sessions with them: the catalog's records meet the adapters here.

Thread model: as the catalog and the adapters: any thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.sources.vsphere_host import HostAbout, HostLogin, VsphereHost


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedHost:
    record: HostRecord
    about: HostAbout


def add_host(catalog: Catalog, login: HostLogin, password: Secret) -> AddedHost:
    """Log in, then store; what cannot log in is not stored.

    Raises: UsageError, HostExistsError, and as `VsphereHost.connect`.
    """
    catalog.hosts.check_free(login.name)  # before the password travels
    record = HostRecord(
        name=login.name,
        kind=HostKind.VSPHERE,
        address=login.address,
        port=login.port,
        user=login.user,
        fingerprint=login.fingerprint,
        server_id="not known yet",
        added_at=catalog.clock.now(),
    )
    with VsphereHost.connect(login, lambda: password) as host:
        about = host.about
    record = replace(record, server_id=about.server_id)
    catalog.hosts.add(record, password)
    return AddedHost(record=record, about=about)


def open_host(catalog: Catalog, record: HostRecord) -> VsphereHost:
    """Log in to a registered host; close it when done.

    The password is opened at each login and not kept. Raises: SecretsKeyLostError,
    SecretDamagedError, and as `VsphereHost.connect`.
    """
    login = HostLogin(
        name=record.name,
        address=record.address,
        port=record.port,
        user=record.user,
        fingerprint=record.fingerprint,
    )
    return VsphereHost.connect(login, lambda: catalog.hosts.password(record))
