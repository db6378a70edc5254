"""The practice vCenter's services: tasks, files, search, roles, networks, tickets, HTTP."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from lab.esx.datastore import LabDatastore
from lab.esx.datastore_path import DatastorePath
from lab.esx.file_locks import LockMode
from lab.vcenter.folders import Folder
from lab.vcenter.http_message import HttpReply, HttpRequest
from lab.vcenter.inventory import Inventory, add_synthetic_machines, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from lab.vcenter.local_call import call_method
from lab.vcenter.managed_object import LabObject, computed, method
from lab.vcenter.tasks import TaskControl
from lab.vcenter.tickets import ServiceTickets
from tests.support.lab import client


@pytest.fixture
def store(tmp_path: Path) -> LabDatastore:
    return LabDatastore("datastore1", tmp_path)


@pytest.fixture
def vcenter() -> Iterator[LabVcenter]:
    with LabVcenter() as running:
        yield running


@pytest.fixture
def inventory(vcenter: LabVcenter, store: LabDatastore) -> Inventory:
    made = build_inventory(vcenter, stores=[store])
    add_synthetic_machines(made, 2)
    return made


@pytest.fixture
def si(vcenter: LabVcenter, inventory: Inventory) -> Iterator[Any]:
    with client(vcenter) as instance:
        yield instance


def run(inventory: Inventory, work: Any, *, cancelable: bool = False) -> Any:
    return inventory.datacenter.vcenter.tasks.start(
        inventory.datacenter,
        work,
        description_id="Datacenter.practice",
        user="administrator@vsphere.local",
        cancelable=cancelable,
    )


def info(si: Any, task: Any) -> Any:
    return vim.Task(task.moid, si._stub).info


# tasks


def test_a_task_shows_progress_result_and_its_entity(si: Any, inventory: Inventory) -> None:
    """running with progress, then success with the result; the entity lists it."""
    go_on, reported = threading.Event(), threading.Event()

    def work(task: TaskControl) -> str:
        task.progress(40)
        reported.set()
        go_on.wait()
        return "done"

    task = run(inventory, work)
    reported.wait()
    running = info(si, task)
    assert (running.state, running.progress, running.completeTime) == ("running", 40, None)
    go_on.set()
    task.finished.wait()
    ended = info(si, task)
    assert (ended.state, ended.result, ended.progress) == ("success", "done", None)
    assert task.moid in [one._moId for one in si.content.rootFolder.childEntity[0].recentTask]


def test_the_fault_of_a_task_arrives_as_its_own_class(si: Any, inventory: Inventory) -> None:
    """Fields included; a defect of the work itself is a SystemError."""

    def refuse(_task: TaskControl) -> None:
        raise vim.fault.FileNotFound(msg="File x was not found", file="x")

    def break_down(_task: TaskControl) -> None:
        raise RuntimeError("broken")

    task, broken = run(inventory, refuse), run(inventory, break_down)
    task.finished.wait()
    broken.finished.wait()
    error = info(si, task).error
    assert isinstance(error, vim.fault.FileNotFound)
    assert (error.file, error.msg) == ("x", "File x was not found")
    assert isinstance(info(si, broken).error, vmodl.fault.SystemError)


def test_only_a_cancelable_task_can_be_cancelled(si: Any, inventory: Inventory) -> None:
    """RequestCanceled is its end; NotSupported for the other."""
    go_on = threading.Event()

    def wait(task: TaskControl) -> None:
        while not task.wait_cancelled(10):
            pass
        task.raise_if_cancelled()

    task = run(inventory, wait, cancelable=True)
    stubborn = run(inventory, lambda _task: go_on.wait())
    vim.Task(task.moid, si._stub).CancelTask()
    task.finished.wait()
    ended = info(si, task)
    assert ended.cancelled
    assert isinstance(ended.error, vmodl.fault.RequestCanceled)
    with pytest.raises(vmodl.fault.NotSupported):
        vim.Task(stubborn.moid, si._stub).CancelTask()
    go_on.set()


def test_a_method_called_from_within_goes_the_way_of_a_client(inventory: Inventory) -> None:
    """The task is awaited; its fault is raised."""
    vcenter = inventory.datacenter.vcenter
    folder = inventory.datacenter.vm_folder
    ref = call_method(vcenter, folder, "CreateFolder", "made")
    made = vcenter.registry.resolve(ref, Folder)
    call_method(vcenter, folder, "MoveIntoFolder_Task", [inventory.machines[0].ref, made.ref])
    assert made.children() == []
    call_method(vcenter, made, "MoveIntoFolder_Task", [inventory.machines[0].ref])
    with pytest.raises(vim.fault.ResourceInUse):
        call_method(vcenter, made, "Destroy_Task")


# the framework


def test_a_class_with_a_misspelt_name_cannot_be_made() -> None:
    """Methods, properties and the number of arguments are checked when the module is imported."""
    with pytest.raises(KeyError):

        class NoSuchMethod(LabObject):
            vim_type = vim.Folder

            @method("CreateFoldr")
            def create(self, call: Any, name: str) -> None: ...

    with pytest.raises(AttributeError):

        class NoSuchProperty(LabObject):
            vim_type = vim.Folder

            @computed("childEntitys")
            def children(self, call: Any) -> None: ...

    with pytest.raises(TypeError):

        class WrongArguments(LabObject):
            vim_type = vim.Folder

            @method("CreateFolder")
            def create(self, call: Any) -> None: ...


def test_a_value_of_the_wrong_type_is_not_stored(inventory: Inventory) -> None:
    """Neither by `set` nor by `update`, and an update leaves what readers hold as it was."""
    machine = inventory.machines[0]
    with pytest.raises(TypeError):
        machine.set(runtime="on")
    held = machine.get("runtime")
    machine.update("runtime.powerState", "poweredOn")
    assert (held.powerState, machine.get("runtime").powerState) == ("poweredOff", "poweredOn")
    with pytest.raises(AttributeError):
        machine.update("runtime.nonsense", 1)


# files


def test_files_in_use_are_refused_and_paths_stay_in_their_datastore(
    si: Any, vcenter: LabVcenter, store: LabDatastore, tmp_path: Path
) -> None:
    """FileLocked for what a machine has open; InvalidDatastorePath for a way out."""
    tmp_path.joinpath("held.vmdk").write_bytes(b"x")
    path = DatastorePath("datastore1", "held.vmdk")
    vcenter.file_locks.acquire("vm-1", [(path, LockMode.SHARED)])
    datacenter = si.content.rootFolder.childEntity[0]
    files = si.content.fileManager
    task = files.DeleteDatastoreFile_Task("[datastore1] held.vmdk", datacenter)
    local = vcenter.registry.get(task._moId)
    assert local is not None
    local.finished.wait()  # type: ignore[attr-defined]
    assert isinstance(task.info.error, vim.fault.FileLocked)
    assert tmp_path.joinpath("held.vmdk").exists()
    with pytest.raises(vim.fault.InvalidDatastorePath):
        files.MakeDirectory("[datastore1] ../out", datacenter)
    with pytest.raises(vim.fault.InvalidDatastore):
        files.MakeDirectory("[elsewhere] a", datacenter)
    with pytest.raises(vim.fault.FileAlreadyExists):
        files.MakeDirectory("[datastore1] held.vmdk", datacenter)


def test_file_operations_need_the_privilege_on_the_datastore(
    vcenter: LabVcenter, inventory: Inventory
) -> None:
    """NoPermission names Datastore.FileManagement and the datastore."""
    role = vcenter.accounts.add_role("browser", ["Datastore.Browse"])
    vcenter.accounts.add_user("browser@lab", "secret")
    vcenter.accounts.permit("browser@lab", role, vcenter.root_folder)
    with client(vcenter, "browser@lab", "secret") as si:
        datacenter = si.content.rootFolder.childEntity[0]
        with pytest.raises(vim.fault.NoPermission) as caught:
            si.content.fileManager.MakeDirectory("[datastore1] a", datacenter)
    assert caught.value.privilegeId == "Datastore.FileManagement"
    assert caught.value.object._moId == inventory.datastores[0].moid


# search


def test_machines_are_found_by_uuid_path_and_file(si: Any, inventory: Inventory) -> None:
    """And what is not there is None."""
    index, machine = si.content.searchIndex, inventory.machines[1]
    config = machine.get("config")
    datacenter = si.content.rootFolder.childEntity[0]
    found = [
        index.FindByUuid(None, config.uuid, True, False),
        index.FindByUuid(datacenter, config.instanceUuid.upper(), True, True),
        index.FindByInventoryPath("DC0/vm/vm0002"),
        index.FindByDatastorePath(datacenter, config.files.vmPathName),
        index.FindChild(datacenter.vmFolder, "vm0002"),
    ]
    assert {one._moId for one in found} == {machine.moid}
    assert index.FindByUuid(None, config.uuid, True, True) is None
    assert index.FindByInventoryPath("DC0/vm/nobody") is None


# roles


def test_missing_privileges_can_be_asked_for_before_anything_is_tried(
    vcenter: LabVcenter, inventory: Inventory
) -> None:
    """HasPrivilegeOnEntities and FetchUserPrivilegeOnEntities agree with what is enforced."""
    wanted = ["VirtualMachine.State.CreateSnapshot", "VirtualMachine.State.RemoveSnapshot"]
    vcenter.accounts.add_user("half@lab", "secret")
    role = vcenter.accounts.add_role("half", wanted[:1])
    vcenter.accounts.permit("half@lab", role, vcenter.root_folder)
    with client(vcenter, "half@lab", "secret") as si:
        manager = si.content.authorizationManager
        key = si.content.sessionManager.currentSession.key
        (answer,) = manager.HasPrivilegeOnEntities([si.content.rootFolder], key, wanted)
        fetched = manager.FetchUserPrivilegeOnEntities([si.content.rootFolder], "half@lab")
    assert [one.isGranted for one in answer.privAvailability] == [True, False]
    assert wanted[0] in fetched[0].privileges
    assert wanted[1] not in fetched[0].privileges


def test_the_nearest_permission_decides(vcenter: LabVcenter, inventory: Inventory) -> None:
    """NoAccess on a folder hides it and what is in it from one who may read the rest."""
    from lab.vcenter.accounts import NO_ACCESS_ROLE, READ_ONLY_ROLE

    vcenter.accounts.add_user("half@lab", "secret")
    vcenter.accounts.permit("half@lab", READ_ONLY_ROLE, vcenter.root_folder)
    hidden = inventory.machines[0]
    vcenter.accounts.permit("half@lab", NO_ACCESS_ROLE, hidden)
    with client(vcenter, "half@lab", "secret") as si:
        view = si.content.viewManager.CreateContainerView(
            si.content.rootFolder, [vim.VirtualMachine], True
        )
        assert [one._moId for one in view.view] == [inventory.machines[1].moid]
        uuid = hidden.get("config").uuid
        assert si.content.searchIndex.FindByUuid(None, uuid, True, False) is None
        with pytest.raises(vim.fault.NoPermission):
            _ = vim.VirtualMachine(hidden.moid, si._stub).config


# networks


def test_a_port_group_in_use_stays(si: Any, inventory: Inventory) -> None:
    """ResourceInUse for the group and its switch; NotFound for unknown names."""
    system = si.content.rootFolder.childEntity[0].hostFolder.childEntity[0].host[0]
    network = system.configManager.networkSystem
    for remove, name in (
        (network.RemovePortGroup, "VM Network"),
        (network.RemoveVirtualSwitch, "vSwitch0"),
    ):
        with pytest.raises(vim.fault.ResourceInUse):
            remove(name)
        with pytest.raises(vim.fault.NotFound):
            remove("nothing")


# tickets and HTTP


def test_a_ticket_is_good_for_one_request_only() -> None:
    """Right URL and method, once, in time; a wrong try uses it up."""
    clock = [0.0]
    tickets = ServiceTickets(lambda: clock[0])
    url = "https://127.0.0.1/folder/a?dcPath=DC0&dsName=ds"
    good = tickets.issue(url, "GET", "me").ticket_id
    assert tickets.redeem(good, url, "GET") is not None
    assert tickets.redeem(good, url, "GET") is None
    for wrong_url, verb in ((url + "x", "GET"), (url, "PUT")):
        ticket = tickets.issue(url, "GET", "me").ticket_id
        assert tickets.redeem(ticket, wrong_url, verb) is None
        assert tickets.redeem(ticket, url, "GET") is None
    late = tickets.issue(url, "GET", "me").ticket_id
    clock[0] += 1000
    assert tickets.redeem(late, url, "GET") is None


def connect(vcenter: LabVcenter) -> http.client.HTTPSConnection:
    context = ssl._create_unverified_context()
    return http.client.HTTPSConnection(vcenter.address, vcenter.port, context=context)


def test_bodies_stream_both_ways_over_one_connection(vcenter: LabVcenter) -> None:
    """Chunked and with a length; what a handler leaves unread does not spoil the next request."""

    def echo(request: HttpRequest) -> HttpReply:
        if request.path == "/echo/ignored":
            return HttpReply(status=409)
        data = request.body.read_all(1 << 20) or b""
        pieces = iter([data[:3], b"", data[3:]])
        return HttpReply(body=pieces, length=len(data) if request.parameter("length") else None)

    vcenter.route("/echo", echo)
    connection = connect(vcenter)
    try:
        for target in ("/echo", "/echo?length=1"):
            for body in (b"0123456789", iter([b"01234", b"56789"])):
                connection.request("PUT", target, body)  # an iterator is sent chunked
                assert connection.getresponse().read() == b"0123456789"
        connection.request("PUT", "/echo/ignored", b"x" * 100_000)
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (409, b"")
        first = connection.sock
        connection.request("GET", "/nowhere")
        assert connection.getresponse().status == 404
        assert connection.sock is first
    finally:
        connection.close()


def test_a_client_that_stalls_in_the_handshake_holds_up_nobody(vcenter: LabVcenter) -> None:
    """Ten silent connections, and a request is answered."""
    silent = [socket.create_connection((vcenter.address, vcenter.port)) for _ in range(10)]
    connection = connect(vcenter)
    try:
        connection.request("GET", "/sdk/vimServiceVersions.xml")
        assert b"8.0.3.0" in connection.getresponse().read()
    finally:
        connection.close()
        for one in silent:
            one.close()
