"""Registered hypervisors and their VMs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from appliance.api.permissions import Permission
from appliance.api.route import Body, Call, RouteTable, Shown
from appliance.base.secret import Secret
from appliance.catalog.points import VmPoints
from appliance.service.hosts import (
    AnyLogin,
    accepted_fingerprint,
    add_host,
    cluster_reach,
    open_host,
)
from appliance.service.protection import newest_by_vm
from appliance.sources.host_about import LackingPurpose
from appliance.sources.hyperv_host import HypervLogin
from appliance.sources.hyperv_node import NodeAddress
from appliance.sources.listed_vm import ListedVm
from appliance.sources.vsphere_host import HostLogin, shown_fingerprint

table = RouteTable("hosts")

HostAddress = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9_:-]{1,63}(\.[A-Za-z0-9_:-]{1,63})*\.?$", max_length=253)
]
"""DNS name or IP address; what else would be an error of the resolver."""


class HostShown(Shown):
    name: str
    kind: str
    address: str
    port: int
    user: str
    fingerprint: str
    added_at: AwareDatetime


class Address(Body):
    address: HostAddress
    port: int = Field(default=443, ge=1, le=65535)


class Fingerprint(Shown):
    fingerprint: str


class NewNode(Body):
    """Another node of a Hyper-V host's failover cluster."""

    address: HostAddress
    port: int = Field(default=5986, ge=1, le=65535)
    smb_port: int = Field(default=445, ge=1, le=65535)
    fingerprint: str = Field(max_length=128)


class NewHost(Body):
    name: str = Field(min_length=1, max_length=63)
    kind: Literal["vsphere", "hyperv"] = "vsphere"
    address: HostAddress
    port: int = Field(default=443, ge=1, le=65535)  # of a Hyper-V host usually 5986
    auth: Literal["ntlm", "kerberos", "credssp", "basic"] = "ntlm"  # of a Hyper-V host
    smb_port: int = Field(default=445, ge=1, le=65535)  # of a Hyper-V host
    smb_protection: Literal["signed", "encrypted"] = "signed"  # of a Hyper-V host
    user: str = Field(min_length=1, max_length=256)
    password: str = Field(max_length=1024)
    fingerprint: str = Field(max_length=128)
    nodes: list[NewNode] = Field(default=[], max_length=63)  # of a Hyper-V host


class LackingShown(Shown):
    purpose: str
    needed_to_back_up: bool
    privileges: tuple[str, ...]


class HostTest(Shown):
    product: str
    version: str
    build: str
    lacking: list[LackingShown]
    missing_nodes: dict[str, str]  # of a Hyper-V host's cluster, with why
    summary: str


class ReasonShown(Shown):
    code: str
    text: str
    next_step: str


class DiskShown(Shown):
    label: str
    size_bytes: int
    obstacle: ReasonShown | None


class VmShown(Shown):
    host: str
    name: str
    moref: str
    power: str
    folder: str
    runs_on: str
    change_tracking: str
    size_bytes: int
    disks: list[DiskShown]
    obstacles: list[ReasonShown]
    point_name: str | None  # that its recovery points are kept under, if it has some
    newest_point: str | None
    newest_at: AwareDatetime | None


class VmQuery(Body):
    host: str | None = None
    name: str = Field(default="", max_length=255, description="Part of the name")
    unprotected: bool = Field(default=False, description="Only those without a recovery point")
    fresh: bool = Field(default=False, description="Ask the hosts now")
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=1000, ge=1, le=10_000)


class VmList(Shown):
    """`vms` are some of the `match_count` that are as asked for, of `vm_count` in all."""

    vms: list[VmShown]
    vm_count: int
    match_count: int
    failures: dict[str, str]


@table.add("GET", "/hosts", Permission.VIEW, response=list[HostShown])
def list_hosts(call: Call) -> list[HostShown]:
    """The registered hypervisors."""
    return [HostShown.model_validate(each) for each in call.services.catalog.hosts.list()]


@table.add("POST", "/fingerprint", Permission.CONFIGURE, body=Address, response=Fingerprint)
def show_fingerprint(call: Call) -> Fingerprint:
    """The certificate that a server shows now, to be compared and accepted."""
    body = call.body_as(Address)
    return Fingerprint(fingerprint=shown_fingerprint(body.address, body.address, body.port))


@table.add("POST", "/hosts", Permission.CONFIGURE, body=NewHost, response=HostShown)
def create_host(call: Call) -> HostShown:
    """Register a hypervisor: log in, then keep address, pin and sealed password."""
    body = call.body_as(NewHost)
    login = _login(body)
    login = replace(login, fingerprint=accepted_fingerprint(login, body.fingerprint))
    if isinstance(login, HypervLogin):
        pins = [
            accepted_fingerprint(other, node.fingerprint)
            for other, node in zip(login.others, body.nodes, strict=True)
        ]
        nodes = zip(login.nodes, pins, strict=True)
        login = replace(login, nodes=tuple(replace(node, fingerprint=pin) for node, pin in nodes))
    added = add_host(call.services.catalog, login, Secret.of_text(body.password))
    return HostShown.model_validate(added.record)


def _login(body: NewHost) -> AnyLogin:
    if body.kind == "vsphere":
        return HostLogin(
            name=body.name, address=body.address, port=body.port, user=body.user, fingerprint=""
        )
    login = HypervLogin.from_settings(
        {
            "login": body.auth,
            "smb_port": str(body.smb_port),
            "smb_protection": body.smb_protection,
        },
        name=body.name,
        address=body.address,
        port=body.port,
        user=body.user,
        fingerprint="",
    )
    nodes = [
        NodeAddress(address=each.address, port=each.port, smb_port=each.smb_port, fingerprint="")
        for each in body.nodes
    ]
    return replace(login, nodes=tuple(nodes))


@table.add("POST", "/hosts/{name}/test", Permission.CONFIGURE, response=HostTest)
def test_host(call: Call) -> HostTest:
    """Log in and list the privileges that are missing, and the nodes of a Hyper-V cluster."""
    catalog = call.services.catalog
    with open_host(catalog, catalog.hosts.get(call.path["name"])) as host:
        about, lacking, reach = host.about, host.lacking_purposes(), cluster_reach(host)
    return HostTest(
        product=about.product,
        version=about.version,
        build=about.build,
        lacking=[LackingShown.model_validate(each) for each in lacking],
        missing_nodes=dict(reach.missing),
        summary=" ".join(
            [_summary(f"{about.product} {about.version}", lacking), *reach.missing.values()]
        ),
    )


def _summary(product: str, lacking: Sequence[LackingPurpose]) -> str:
    if not lacking:
        return f"{product}: every privilege that is needed is there."
    told = "; ".join(f"{each.purpose}: {', '.join(each.privileges)}" for each in lacking)
    return f"{product}: missing for {told}"


@table.add("DELETE", "/hosts/{name}", Permission.CONFIGURE)
def remove_host(call: Call) -> None:
    """Forget a hypervisor; the recovery points of its VMs stay."""
    call.services.catalog.hosts.remove(call.path["name"])


@table.add("GET", "/vms", Permission.VIEW, query=VmQuery, response=VmList)
def list_vms(call: Call) -> VmList:
    """The VMs of all hosts, what protects them and what stands in the way."""
    query, services = call.query_as(VmQuery), call.services
    inventory = services.inventory.get(fresh=query.fresh)
    newest_of = newest_by_vm(services.catalog.points.vms())
    name = query.name.casefold()
    matching = [
        vm
        for vm in inventory.vms
        if query.host in (None, vm.host)
        and name in vm.name.casefold()
        and not (query.unprotected and vm.identity.key in newest_of)
    ]
    page = matching[query.offset : query.offset + query.limit]
    shown = [_vm_shown(vm, newest_of.get(vm.identity.key)) for vm in page]
    failures = {name: str(error) for name, error in inventory.failures.items()}
    return VmList(
        vms=shown,
        vm_count=len(inventory.vms),
        match_count=len(matching),
        failures=failures,
    )


def _vm_shown(vm: ListedVm, newest: VmPoints | None) -> VmShown:
    return VmShown(
        host=vm.host,
        name=vm.name,
        moref=vm.moref,
        power=vm.power,
        folder=vm.folder,
        runs_on=vm.runs_on,
        change_tracking=vm.change_tracking,
        size_bytes=vm.size_bytes,
        disks=[DiskShown.model_validate(disk) for disk in vm.disks],
        obstacles=[ReasonShown.model_validate(each) for each in vm.obstacles],
        point_name=newest.vm if newest else None,
        newest_point=newest.newest_id if newest else None,
        newest_at=newest.newest_at if newest else None,
    )
