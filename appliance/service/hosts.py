"""Registered hosts and sessions with them: the catalog's records meet the adapters here.

Thread model: as the catalog and the adapters: any thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from appliance.base.errors import UsageError
from appliance.base.secret import Secret
from appliance.catalog.catalog import Catalog
from appliance.catalog.hosts import HostKind, HostRecord
from appliance.sources import (
    hyperv_host,
    hyperv_listing,
    hyperv_places,
    vsphere_host,
    vsphere_listing,
    vsphere_places,
)
from appliance.sources.host_about import HostAbout
from appliance.sources.host_places import HostPlaces
from appliance.sources.hyperv_host import HypervHost, HypervLogin
from appliance.sources.hyperv_nodes import HypervNodes
from appliance.sources.listed_vm import ListedVm
from appliance.sources.vsphere_host import HostLogin, VsphereHost

RegisteredHost = VsphereHost | HypervHost
AnyLogin = HostLogin | HypervLogin


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedHost:
    record: HostRecord
    about: HostAbout


def shown_fingerprint(login: AnyLogin) -> str:
    """Return the SHA-256 of the certificate that the server shows now; sends no request.

    Raises: as the adapters' functions of this name.
    """
    where = (login.name, login.address, login.port)
    if isinstance(login, HypervLogin):
        return hyperv_host.shown_fingerprint(*where)
    return vsphere_host.shown_fingerprint(*where)


def accepted_fingerprint(login: AnyLogin, accepted: str) -> str:
    """Return the SHA-256 of the server's certificate if it is the accepted one.

    Raises: as the adapters' functions of this name.
    """
    where = (login.name, login.address, login.port)
    if isinstance(login, HypervLogin):
        return hyperv_host.accepted_fingerprint(*where, accepted)
    return vsphere_host.accepted_fingerprint(*where, accepted)


def add_host(catalog: Catalog, login: AnyLogin, password: Secret) -> AddedHost:
    """Log in, then store; what cannot log in is not stored.

    Raises: UsageError, HostExistsError, and as `VsphereHost.connect`, `HypervHost.connect`.
    """
    catalog.hosts.check_free(login.name)  # before the password travels
    is_hyperv = isinstance(login, HypervLogin)
    record = HostRecord(
        name=login.name,
        kind=HostKind.HYPERV if is_hyperv else HostKind.VSPHERE,
        address=login.address,
        port=login.port,
        user=login.user,
        fingerprint=login.fingerprint,
        server_id="not known yet",
        added_at=catalog.clock.now(),
        settings=login.settings if isinstance(login, HypervLogin) else {},
    )
    with connect(login, password) as host:
        about = host.about
    record = replace(record, server_id=about.server_id)
    catalog.hosts.add(record, password)
    return AddedHost(record=record, about=about)


def connect(login: AnyLogin, password: Secret) -> RegisteredHost:
    """Log in; close it when done. Raises: as `VsphereHost.connect`, `HypervHost.connect`."""
    if isinstance(login, HypervLogin):
        return HypervHost.connect(login, lambda: password)
    return VsphereHost.connect(login, lambda: password)


def open_host(catalog: Catalog, record: HostRecord) -> RegisteredHost:
    """Log in to a registered host; close it when done.

    The password is opened at each login and not kept. Raises: SecretsKeyLostError,
    SecretDamagedError, and as `VsphereHost.connect`, `HypervHost.connect`.
    """
    login = login_of(record)
    if isinstance(login, HypervLogin):
        return HypervHost.connect(login, lambda: catalog.hosts.password(record))
    return VsphereHost.connect(login, lambda: catalog.hosts.password(record))


def open_to_read(catalog: Catalog, record: HostRecord) -> RegisteredHost:
    """As `open_host`, for what any node of a Hyper-V cluster serves: the first that answers."""
    login = login_of(record)
    if isinstance(login, HypervLogin):
        return HypervHost.connect_any(login, lambda: catalog.hosts.password(record))
    return open_host(catalog, record)


def login_of(record: HostRecord) -> AnyLogin:
    """Raises UsageError: a record that this version does not know."""
    if record.kind is HostKind.HYPERV:
        return HypervLogin.from_settings(
            record.settings,
            name=record.name,
            address=record.address,
            port=record.port,
            user=record.user,
            fingerprint=record.fingerprint,
        )
    return HostLogin(
        name=record.name,
        address=record.address,
        port=record.port,
        user=record.user,
        fingerprint=record.fingerprint,
    )


def open_vsphere(catalog: Catalog, record: HostRecord) -> VsphereHost:
    """As `open_host`, for what only vSphere can do yet. Raises UsageError: it is another kind."""
    if record.kind is not HostKind.VSPHERE:
        raise UsageError(
            f"host {record.name!r} is not vSphere; VMs are not started there to be checked yet"
        )
    opened = open_host(catalog, record)
    assert isinstance(opened, VsphereHost)
    return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterReach:
    """The nodes of a host's failover cluster; `missing`: why some cannot be asked, by name."""

    nodes: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)


def cluster_reach(host: RegisteredHost) -> ClusterReach:
    """Try every node of a Hyper-V failover cluster. Raises: as `open_host`."""
    if not isinstance(host, HypervHost):
        return ClusterReach()
    nodes = HypervNodes(host)
    try:
        found = nodes.cluster()
        if found is None:
            return ClusterReach()
        names = tuple(node.name for node in found.nodes)
        return ClusterReach(nodes=names, missing=nodes.missing())
    finally:
        nodes.close_others()


def list_vms(host: RegisteredHost) -> list[ListedVm]:
    """Return all VMs and templates, by name. Raises: as `open_host`."""
    if isinstance(host, HypervHost):
        return hyperv_listing.list_vms(host)
    return vsphere_listing.list_vms(host)


def places_of(host: RegisteredHost) -> HostPlaces:
    """Where it could put a VM. Raises: as `open_host`."""
    if isinstance(host, HypervHost):
        return hyperv_places.places_of(host)
    return vsphere_places.places_of(host)
