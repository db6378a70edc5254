"""NFS datastores of the practice vCenter: mounted, run from, left and unmounted, as on ESXi."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from appliance.exports.nfs import NfsServer, PortmapMode, nfs_export
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.guests import GuestKind, build, read_journal
from lab.vcenter.virtual_machine_setup import add_guest
from tests.support.lab_machines import Practice, done, practice
from tests.support.lab_nfs import (
    hosts_of,
    mounted,
    nas_spec,
    needs_nfs_datastores,
    own_address,
    powered_on,
    registered,
)
from tests.support.plain_folder import PlainFolder

pytestmark = pytest.mark.integration

PATH = "/export/run-1"


class Export:
    """A folder that a server shows to the lab's hosts."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address

    def spec(self, name: str = "nas", **fields: str) -> Any:
        return nas_spec(self.address, PATH, name, **fields)


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Export]:
    needs_nfs_datastores()
    address = own_address()
    server = NfsServer(key=b"k" * 32, host=address, portmap_mode=PortmapMode.OWN)
    server.publish(nfs_export(PATH, 7, PlainFolder(tmp_path), ["127.0.0.0/8"]))
    with server:
        yield Export(tmp_path, address)


@pytest.fixture
def lab() -> Iterator[Practice]:
    with practice() as made:
        yield made


def guest_on(lab: Practice, export: Export) -> tuple[Any, Engine]:
    """The tiny guest, its files on the export, registered on the first host."""
    add_guest(lab.inventory, "guest", build(GuestKind.TINY), forward=(7777,))
    lab.machine("guest").UnregisterVM()
    shutil.move(lab.folder / "ds1" / "guest", export.folder / "guest")
    host = hosts_of(lab)[0]
    mounted(host, export.spec())
    return registered(lab, "[nas] guest/guest.vmx", host), lab.library.list()[0]


def acknowledged(engine: Engine, since: int) -> int:
    """The number of a record that the guest has on its disk, after a place of its console."""
    assert engine.machine is not None
    found = engine.machine.console.wait_line(r"ACK (\d+)", since=since, timeout_s=60.0)
    assert found is not None, "the guest stands still"
    return int(found[1])


def test_an_export_is_one_datastore_on_every_host_that_mounts_it(
    lab: Practice, export: Export
) -> None:
    """By the very text of host and path; it goes with its last host."""
    first, second = hosts_of(lab)
    datastore = mounted(first, export.spec())
    assert mounted(second, export.spec()) == datastore
    assert {one.key for one in datastore.host} == {first, second}
    assert all(one.mountInfo.accessible for one in datastore.host)
    assert datastore.summary.accessible and datastore.summary.type == "NFS"
    nas = datastore.info.nas
    assert (nas.name, nas.remoteHost, nas.remotePath) == ("nas", export.address, PATH)
    assert {"127.0.1.1", "127.0.0.1"} == {n.spec.ip.ipAddress for n in first.config.network.vnic}
    first.configManager.datastoreSystem.RemoveDatastore(datastore)
    assert [one.key for one in datastore.host] == [second]
    (result,) = done(second.configManager.datastoreSystem.RemoveDatastoreEx_Task([datastore]))
    assert result.fault is None
    assert sorted(one.name for one in second.datastore) == ["ds1", "ds2"]


def test_what_cannot_be_mounted_is_refused_by_its_fault(lab: Practice, export: Export) -> None:
    """No server, no such export, a taken name, the same export again, not NFS 3."""
    host = hosts_of(lab)[0]
    for bad in (nas_spec(own_address(), PATH), nas_spec(export.address, "/elsewhere")):
        with pytest.raises(vim.fault.PlatformConfigFault):
            mounted(host, bad)
    with pytest.raises(vim.fault.DuplicateName):
        mounted(host, export.spec("ds1"))
    with pytest.raises(Exception, match="NotSupported"):
        mounted(host, export.spec(kind="NFS41"))
    mounted(host, export.spec())
    with pytest.raises(vim.fault.AlreadyExists):
        mounted(host, export.spec("other"))


def test_a_guest_runs_from_nfs_and_moves_to_a_local_datastore(
    lab: Practice, export: Export
) -> None:
    """Nothing that it was told is written is lost; the export is unmounted only after it left."""
    vm, engine = guest_on(lab, export)
    (datastore,) = vm.datastore
    powered_on(lab, vm)
    assert engine.machine is not None
    console = engine.machine.console
    assert console.wait_line("HOLDFAST-READY", since=0, timeout_s=120.0)
    engine.machine.send_line("journal start")
    acknowledged(engine, 0)
    system = hosts_of(lab)[0].configManager.datastoreSystem
    with pytest.raises(vim.fault.ResourceInUse):
        system.RemoveDatastore(datastore)
    target = next(one for one in lab.inventory.datastores if one.name == "ds2")
    done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target.ref)))
    number = acknowledged(engine, console.mark)
    assert [one.name for one in vm.datastore] == ["ds2"]
    assert list(export.folder.iterdir()) == []
    system.RemoveDatastore(datastore)
    done(vm.PowerOffVM_Task())
    numbers = read_journal(lab.folder / "ds2" / "guest" / "guest-flat.vmdk")
    assert numbers == list(range(1, numbers[-1] + 1)) and numbers[-1] >= number
