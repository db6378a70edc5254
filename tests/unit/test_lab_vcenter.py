"""The practice vCenter, through pyVmomi: sessions, privileges, properties, updates, strictness."""

from __future__ import annotations

import http.client
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from lab.vcenter.accounts import READ_ONLY_ROLE
from lab.vcenter.inventory import Inventory, add_synthetic_machines, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from tests.support.lab import client, filter_for

Collector = vmodl.query.PropertyCollector


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def vcenter(clock: Clock) -> Iterator[LabVcenter]:
    with LabVcenter(page_objects=7, idle_s=60, clock=clock) as running:
        yield running


@pytest.fixture(scope="module")
def inventory(vcenter: LabVcenter) -> Inventory:
    made = build_inventory(vcenter)
    add_synthetic_machines(made, 20)
    return made


@pytest.fixture
def si(vcenter: LabVcenter, inventory: Inventory) -> Iterator[Any]:
    with client(vcenter) as instance:
        yield instance


def machines_view(si: Any) -> Any:
    return si.content.viewManager.CreateContainerView(
        si.content.rootFolder, [vim.VirtualMachine], True
    )


def post(vcenter: LabVcenter, body: str, cookie: str = "") -> tuple[int, str]:
    context = ssl._create_unverified_context()
    connection = http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context)
    try:
        headers = {"SOAPAction": "urn:vim25/8.0.3.0", "Cookie": cookie}
        connection.request("POST", "/sdk", body.encode(), headers)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


def envelope(method: str) -> str:
    return (
        '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>'
        f"{method}</soapenv:Body></soapenv:Envelope>"
    )


def test_a_client_negotiates_the_version_and_reads_who_answers(si: Any) -> None:
    """SmartConnect ends with API 8.0.3.0 and a vCenter."""
    assert si._stub.version == "vim.version.v8_0_3_0"
    assert (si.content.about.apiType, si.content.about.apiVersion) == ("VirtualCenter", "8.0.3.0")


def test_a_wrong_password_is_an_invalid_login(vcenter: LabVcenter) -> None:
    """InvalidLogin, and no session."""
    with pytest.raises(vim.fault.InvalidLogin), client(vcenter, password="wrong"):
        pass


def test_an_idle_session_expires_with_everything_that_belongs_to_it(
    vcenter: LabVcenter, inventory: Inventory, clock: Clock
) -> None:
    """After idle_s: NotAuthenticated, and the view is gone from the server."""
    with client(vcenter) as si:
        moid = machines_view(si)._moId
        clock.now_s += 50
        si.CurrentTime()
        clock.now_s += 50
        si.CurrentTime()
        assert vcenter.registry.get(moid) is not None
        clock.now_s += 61
        with pytest.raises(vim.fault.NotAuthenticated):
            si.CurrentTime()
        assert vcenter.registry.get(moid) is None


def test_a_view_of_another_session_is_not_there(si: Any, vcenter: LabVcenter) -> None:
    """What a session made answers ManagedObjectNotFound to others."""
    view = machines_view(si)
    with client(vcenter) as other, pytest.raises(vmodl.fault.ManagedObjectNotFound):
        vim.view.ContainerView(view._moId, other._stub).Destroy()


def test_properties_come_in_pages_until_the_token_ends(si: Any) -> None:
    """20 machines in pages of 7, whatever maxObjects asks; each machine once."""
    collector = si.content.propertyCollector
    spec = filter_for(machines_view(si), vim.VirtualMachine, ["name", "config.instanceUuid"])
    names, sizes, result = (
        [],
        [],
        collector.RetrievePropertiesEx([spec], Collector.RetrieveOptions(maxObjects=100)),
    )
    while True:
        sizes.append(len(result.objects))
        names += [{p.name: p.val for p in o.propSet}["name"] for o in result.objects]
        if result.token is None:
            break
        result = collector.ContinueRetrievePropertiesEx(result.token)
    assert sizes == [7, 7, 6]
    assert names == [f"vm{number:04d}" for number in range(1, 21)]


def test_a_token_is_good_once(si: Any) -> None:
    """A used or cancelled token is an InvalidArgument."""
    collector = si.content.propertyCollector
    spec = filter_for(machines_view(si), vim.VirtualMachine, ["name"])
    token = collector.RetrievePropertiesEx([spec], Collector.RetrieveOptions()).token
    collector.CancelRetrievePropertiesEx(token)
    with pytest.raises(vmodl.fault.InvalidArgument):
        collector.ContinueRetrievePropertiesEx(token)


@pytest.mark.parametrize("path", ["nonsense", "config.nonsense", "config.hardware.device.key", ""])
def test_an_unknown_property_is_refused(si: Any, path: str) -> None:
    """InvalidProperty names the path."""
    spec = filter_for(machines_view(si), vim.VirtualMachine, [path])
    with pytest.raises(vmodl.query.InvalidProperty) as caught:
        si.content.propertyCollector.RetrieveContents([spec])
    assert caught.value.name == path


def test_unset_properties_are_absent_and_array_elements_are_found_by_key(si: Any) -> None:
    """`snapshot` is unset; `device[2000]` is the disk; `device[9]` is nobody."""
    paths = ["snapshot", "config.hardware.device[2000].backing.fileName"]
    spec = filter_for(machines_view(si), vim.VirtualMachine, [*paths, "config.hardware.device[9]"])
    content = si.content.propertyCollector.RetrieveContents([spec])[0]
    assert [(p.name, p.val) for p in content.propSet] == [
        (paths[1], "[datastore1] vm0001/vm0001.vmdk")
    ]
    assert not content.missingSet


def test_a_recursive_traversal_with_names_finds_every_machine_once(si: Any) -> None:
    """Folder → childEntity and datacenter → vmFolder, by named selections, as old clients do."""
    spec = Collector.TraversalSpec
    selections = [
        spec(
            name="folders",
            type=vim.Folder,
            path="childEntity",
            selectSet=[Collector.SelectionSpec(name="folders"), Collector.SelectionSpec(name="dc")],
        ),
        spec(
            name="dc",
            type=vim.Datacenter,
            path="vmFolder",
            selectSet=[Collector.SelectionSpec(name="folders")],
        ),
    ]
    found = si.content.propertyCollector.RetrieveContents(
        [
            Collector.FilterSpec(
                objectSet=[Collector.ObjectSpec(obj=si.content.rootFolder, selectSet=selections)],
                propSet=[Collector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
            )
        ]
    )
    assert len(found) == len({content.obj._moId for content in found}) == 20


def test_who_may_only_read_is_told_object_and_privilege(
    vcenter: LabVcenter, inventory: Inventory
) -> None:
    """NoPermission for a change; reading works."""
    vcenter.accounts.add_user("reader@lab", "secret")
    vcenter.accounts.permit("reader@lab", READ_ONLY_ROLE, vcenter.root_folder)
    with client(vcenter, "reader@lab", "secret") as si:
        folder = si.content.rootFolder.childEntity[0].vmFolder
        assert len(folder.childEntity) == 20
        with pytest.raises(vim.fault.NoPermission) as caught:
            folder.CreateFolder("mine")
    assert caught.value.privilegeId == "Folder.Create"
    assert caught.value.object._moId == inventory.datacenter.vm_folder.moid


def test_who_may_not_read_gets_a_missing_set(vcenter: LabVcenter, inventory: Inventory) -> None:
    """A user who may only view gets the name, and NoPermission for `config` in missingSet."""
    vcenter.accounts.add_user("viewer@lab", "secret")
    role = vcenter.accounts.add_role("view only", [])
    vcenter.accounts.permit("viewer@lab", role, vcenter.root_folder)
    vcenter.accounts.narrow_role(role, {"System.Anonymous", "System.View"})
    with client(vcenter, "viewer@lab", "secret") as si:
        spec = filter_for(machines_view(si), vim.VirtualMachine, ["name", "config"])
        content = si.content.propertyCollector.RetrieveContents([spec])[0]
    assert [p.name for p in content.propSet] == ["name"]
    assert [(m.path, m.fault.privilegeId) for m in content.missingSet] == [
        ("config", "System.Read")
    ]


def test_updates_enter_modify_and_leave(si: Any, vcenter: LabVcenter, inventory: Inventory) -> None:
    """WaitForUpdatesEx: everything, then nothing, then each change as it happens."""
    folder = vcenter.root_folder
    collector = si.content.propertyCollector.CreatePropertyCollector()
    view = si.content.viewManager.CreateContainerView(si.content.rootFolder, [vim.Folder], True)
    collector.CreateFilter(filter_for(view, vim.Folder, ["name"]), True)
    options = Collector.WaitOptions(maxWaitSeconds=0)
    first = collector.WaitForUpdatesEx("", options)
    assert {u.kind for u in first.filterSet[0].objectSet} == {"enter"}
    assert collector.WaitForUpdatesEx(first.version, options) is None

    made = folder.create_folder(None, "fresh")  # type: ignore[arg-type]
    entered = collector.WaitForUpdatesEx(first.version, Collector.WaitOptions(maxWaitSeconds=30))
    (update,) = entered.filterSet[0].objectSet
    assert (update.kind, update.changeSet[0].val) == ("enter", "fresh")

    thing = vcenter.registry.get(made._moId)
    assert thing is not None
    thing.set(name="renamed")
    changed = collector.WaitForUpdatesEx(entered.version, options)
    (update,) = changed.filterSet[0].objectSet
    assert (update.kind, update.changeSet[0].name, update.changeSet[0].val) == (
        "modify",
        "name",
        "renamed",
    )
    vim.Folder(made._moId, si._stub).Destroy()
    gone = collector.WaitForUpdatesEx(changed.version, Collector.WaitOptions(maxWaitSeconds=30))
    assert [u.kind for u in gone.filterSet[0].objectSet] == ["leave"]


def test_truncated_updates_are_all_told_in_the_end(si: Any) -> None:
    """maxObjectUpdates 6 of 20: truncated until nothing is left."""
    collector = si.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(filter_for(machines_view(si), vim.VirtualMachine, ["name"]), False)
    version, sizes = "", []
    while True:
        reply = collector.WaitForUpdatesEx(
            version, Collector.WaitOptions(maxWaitSeconds=0, maxObjectUpdates=6)
        )
        version = reply.version
        sizes.append(len(reply.filterSet[0].objectSet))
        if not reply.truncated:
            break
    assert sizes == [6, 6, 6, 2]


def test_a_wait_is_cancelled_from_another_connection(si: Any) -> None:
    """CancelWaitForUpdates ends a wait without time limit with RequestCanceled."""
    collector = si.content.propertyCollector.CreatePropertyCollector()
    collector.CreateFilter(filter_for(machines_view(si), vim.VirtualMachine, ["name"]), False)
    version = collector.WaitForUpdatesEx("", None).version
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            collector.WaitForUpdatesEx(version, None)
        except vmodl.fault.RequestCanceled as fault:
            ended.append(fault)

    thread = threading.Thread(target=wait)
    thread.start()
    while thread.is_alive():
        collector.CancelWaitForUpdates()
        thread.join(0.05)
    assert len(ended) == 1


def test_an_object_that_is_gone_is_not_found(si: Any) -> None:
    """ManagedObjectNotFound carries the reference."""
    with pytest.raises(vmodl.fault.ManagedObjectNotFound) as caught:
        vim.VirtualMachine("vm-999999", si._stub).Reload()
    assert caught.value.obj._moId == "vm-999999"


def test_a_method_that_nobody_built_is_not_found(si: Any) -> None:
    """MethodNotFound, by which clients see what is not supported."""
    with pytest.raises(vmodl.fault.MethodNotFound):
        si.RetrieveProductComponents()


STRICT: list[tuple[str, Callable[[str], bool]]] = [
    ('<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this>'
     "<userName>x</userName><password>y</password></Login>", lambda text: "InvalidLogin" in text),
    ('<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this></Login>',
     lambda text: "Required parameter userName is missing" in text),
    ('<Login xmlns="urn:vim25"><userName>x</userName></Login>',
     lambda text: "Required parameter _this is missing" in text),
    ('<Login xmlns="urn:vim25"><_this type="SessionManager">SessionManager</_this>'
     "<userName>x</userName><password>y</password><color>red</color></Login>",
     lambda text: "Unexpected element" in text),
    ('<Nonsense xmlns="urn:vim25"/>', lambda text: "InvalidRequestFault" in text),
    ('<Login xmlns="urn:other"/>', lambda text: "InvalidRequestFault" in text),
    ('<CurrentTime xmlns="urn:vim25"><_this type="ServiceInstance">ServiceInstance</_this>'
     "</CurrentTime>", lambda text: "NotAuthenticatedFault" in text),
    ('<RetrievePropertiesEx xmlns="urn:vim25"><_this type="PropertyCollector">propertyCollector'
     '</_this><specSet><objectSet><obj type="Folder">group-d1</obj><skip>maybe</skip></objectSet>'
     "</specSet><options/></RetrievePropertiesEx>", lambda text: "is not a value for skip" in text),
    ('<RetrievePropertiesEx xmlns="urn:vim25"><_this type="PropertyCollector">propertyCollector'
     '</_this><specSet xsi:type="HostSystem"/><options/></RetrievePropertiesEx>',
     lambda text: "InvalidTypeFault" in text),
]  # fmt: skip


@pytest.mark.parametrize(("method", "expected"), STRICT)
def test_a_request_that_does_not_fit_the_schema_is_refused(
    vcenter: LabVcenter, method: str, expected: Callable[[str], bool]
) -> None:
    """Every misfit is a fault with status 500, none an empty success."""
    status, text = post(vcenter, envelope(method))
    assert status == 500
    assert expected(text), text


@pytest.mark.parametrize(
    "body",
    [
        "",
        "not xml",
        "<a/>",
        '<!DOCTYPE a [<!ENTITY b "c">]>' + envelope('<Login xmlns="urn:vim25"/>'),
        envelope("<a>" * 100 + "</a>" * 100),
        envelope(""),
    ],
)
def test_what_is_no_soap_request_is_refused_before_it_costs_anything(
    vcenter: LabVcenter, body: str
) -> None:
    """No entity is expanded, no depth is followed."""
    status, text = post(vcenter, body)
    assert (status, "InvalidRequestFault" in text) == (500, True)
