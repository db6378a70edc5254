"""NFS datastores of the practice vCenter: mounted, run from, left and unmounted, as on ESXi."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl

from appliance.exports.nfs import NfsServer, PortmapMode, nfs_export
from lab.esx.console import Console
from lab.esx.nas_datastore import NasTimings
from lab.esx.virtual_machine import VirtualMachine as Engine
from lab.esx.vmdk import flat_descriptor
from lab.guests import GuestKind, build, copy_sparse, read_journal
from tests.support.ganesha import Ganesha, ganesha_serving, needs_ganesha
from tests.support.holdfast_program import run, run_json, serving
from tests.support.lab_machines import Practice, done, practice, removed, snapped, wait_until
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
QUICK = NasTimings(
    heartbeat_s=0.1, heartbeat_timeout_s=0.3, failures_max=2, call_timeout_s=20, lock_update_s=0.3
)
VMX = """.encoding = "UTF-8"
config.version = "8"
virtualHW.version = "19"
displayName = "guest"
guestOS = "debian12-64"
memSize = "256"
numvcpus = "1"
scsi0.present = "TRUE"
scsi0.virtualDev = "pvscsi"
scsi0:0.present = "TRUE"
scsi0:0.deviceType = "scsi-hardDisk"
scsi0:0.fileName = "guest.vmdk"
uuid.action = "keep"
"""


class Export:
    """A folder that a server shows to the lab's hosts, with a machine's files in it."""

    def __init__(self, folder: Path, address: str, path: str = PATH) -> None:
        self.folder = folder
        self.address = address
        self.path = path

    def spec(self, name: str = "nas", **fields: str) -> Any:
        return nas_spec(self.address, self.path, name, **fields)

    @property
    def guest(self) -> Path:
        return self.folder / "guest"

    def add_guest(self) -> None:
        """The files of the tiny guest, as a recovery session shows them."""
        image = build(GuestKind.TINY)
        self.guest.mkdir()
        copy_sparse(image, self.guest / "guest-flat.vmdk")
        descriptor = flat_descriptor("guest", image.stat().st_size)
        (self.guest / "guest.vmdk").write_text(descriptor.text())
        (self.guest / "guest.vmx").write_text(VMX)


@pytest.fixture
def export(tmp_path: Path) -> Iterator[Export]:
    needs_nfs_datastores()
    address = own_address()
    server = NfsServer(key=b"k" * 32, host=address, portmap_mode=PortmapMode.OWN)
    server.publish(nfs_export(PATH, 7, PlainFolder(tmp_path), ["127.0.0.0/8"]))
    with server:
        yield Export(tmp_path, address)


@pytest.fixture
def lab(export: Export) -> Iterator[Practice]:
    """It ends before its server does."""
    with practice(nas=QUICK) as made:
        yield made


@pytest.fixture
def ganesha(tmp_path: Path) -> Iterator[tuple[Ganesha, Export]]:
    """A server that nobody here wrote."""
    needs_nfs_datastores()
    address = own_address()
    with ganesha_serving(needs_ganesha(), tmp_path, address) as server:
        yield server, Export(tmp_path, address, str(tmp_path))


def guest_on(lab: Practice, export: Export) -> tuple[Any, Engine]:
    """The tiny guest, its files on the export, registered on the first host."""
    export.add_guest()
    host = hosts_of(lab)[0]
    mounted(host, export.spec())
    return registered(lab, "[nas] guest/guest.vmx", host), lab.library.list()[0]


def booted(lab: Practice, vm: Any, engine: Engine) -> Console:
    """Power on, and let the guest write its numbered journal."""
    powered_on(lab, vm)
    assert engine.machine is not None
    console = engine.machine.console
    assert console.wait_line("HOLDFAST-READY", since=0, timeout_s=120.0)
    engine.machine.send_line("journal start")
    acknowledged(engine, 0)
    return console


def acknowledged(engine: Engine, since: int) -> int:
    """The number of a record that the guest has on its disk, after a place of its console."""
    assert engine.machine is not None
    found = engine.machine.console.wait_line(r"ACK (\d+)", since=since, timeout_s=60.0)
    assert found is not None, "the guest stands still"
    return int(found[1])


def unbroken(disk: Path) -> int:
    """The last number of a journal without gaps."""
    numbers = read_journal(disk)
    assert numbers == list(range(1, numbers[-1] + 1))
    return numbers[-1]


def content_id(descriptor: str) -> str:
    return next(line for line in descriptor.splitlines() if line.startswith("CID="))


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
    assert 0 < datastore.summary.freeSpace <= datastore.summary.capacity
    nas = datastore.info.nas
    assert (nas.name, nas.remoteHost, nas.remotePath) == ("nas", export.address, PATH)
    assert {"127.0.1.1", "127.0.0.1"} == {n.spec.ip.ipAddress for n in first.config.network.vnic}
    first.configManager.datastoreSystem.RemoveDatastore(datastore)
    assert [one.key for one in datastore.host] == [second]
    (result,) = done(second.configManager.datastoreSystem.RemoveDatastoreEx_Task([datastore]))
    assert result.fault is None
    assert sorted(one.name for one in second.datastore) == ["ds1", "ds2"]


def test_other_text_for_the_same_export_is_another_datastore(lab: Practice, export: Export) -> None:
    """With a number behind its name, and the same files."""
    first, second = hosts_of(lab)
    datastore = mounted(first, export.spec())
    other = mounted(second, nas_spec(export.address, f"{PATH}/"))
    assert (other != datastore, other.name) == (True, "nas (1)")
    (export.folder / "there").touch()
    found = done(other.browser.SearchDatastore_Task("[nas (1)]", None))
    assert [one.path for one in found.file] == ["there"]


def test_what_cannot_be_mounted_is_refused_by_its_fault(lab: Practice, export: Export) -> None:
    """No server, no such export, a taken name, the same export again, not NFS 3."""
    host = hosts_of(lab)[0]
    for bad in (nas_spec(own_address(), PATH), nas_spec(export.address, "/elsewhere")):
        with pytest.raises(vim.fault.PlatformConfigFault):
            mounted(host, bad)
    with pytest.raises(vim.fault.DuplicateName):
        mounted(host, export.spec("ds1"))
    with pytest.raises(vmodl.fault.NotSupported):
        mounted(host, export.spec(kind="NFS41"))
    mounted(host, export.spec())
    with pytest.raises(vim.fault.AlreadyExists):
        mounted(host, export.spec("other"))


def test_a_host_mounts_no_more_than_32_exports(lab: Practice, export: Export) -> None:
    """As ESXi by default; another host still can."""
    first, second = hosts_of(lab)
    for number in range(33):
        (export.folder / f"e{number}").mkdir()
    for number in range(32):
        mounted(first, nas_spec(export.address, f"{PATH}/e{number}", f"nas{number}"))
    last = nas_spec(export.address, f"{PATH}/e32", "nas32")
    with pytest.raises(vim.fault.NasConnectionLimitReached):
        mounted(first, last)
    mounted(second, last)


def test_a_read_only_mount_lets_nothing_be_written(lab: Practice, export: Export) -> None:
    """It can be registered from neither: a host writes the .vmx."""
    export.add_guest()
    host = hosts_of(lab)[0]
    datastore = mounted(host, export.spec(mode="readOnly"))
    assert datastore.host[0].mountInfo.accessMode == "readOnly"
    with pytest.raises(vim.fault.FileFault):
        registered(lab, "[nas] guest/guest.vmx", host)
    assert (export.guest / "guest.vmx").read_text() == VMX


def test_a_guest_runs_from_nfs_and_moves_to_a_local_datastore(
    ganesha: tuple[Ganesha, Export],
) -> None:
    """From a server that is killed on the way; no record of the guest's is lost."""
    server, export = ganesha
    with practice(nas=QUICK) as lab:
        vm, engine = guest_on(lab, export)
        (datastore,) = vm.datastore
        system = hosts_of(lab)[0].configManager.datastoreSystem
        with pytest.raises(vim.fault.ResourceInUse):
            system.RemoveDatastore(datastore)
        console = booted(lab, vm, engine)
        snapshot = snapped(vm)
        assert (export.guest / "guest-000001-delta.vmdk").exists()
        server.restart()
        acknowledged(engine, console.mark)
        removed(snapshot)
        assert not vm.runtime.consolidationNeeded
        with pytest.raises(vim.fault.ResourceInUse):
            done(datastore.Destroy_Task())
        target = next(one for one in lab.inventory.datastores if one.name == "ds2")
        done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target.ref)))
        number = acknowledged(engine, console.mark)
        assert [one.name for one in vm.datastore] == ["ds2"]
        assert list(export.folder.iterdir()) == []
        done(datastore.Destroy_Task())
        done(vm.PowerOffVM_Task())
        assert unbroken(lab.folder / "ds2" / "guest" / "guest-flat.vmdk") >= number


def test_a_running_machine_locks_its_files_and_leaves_none_behind(
    lab: Practice, export: Export
) -> None:
    """Lock files are named after the file's id, and written anew; a swap file is there, too."""
    vm, _engine = guest_on(lab, export)
    before = (export.guest / "guest.vmdk").read_text()
    done(vm.PowerOnVM_Task())
    number = (export.guest / "guest-flat.vmdk").stat().st_ino
    lock = export.guest / f".lck-{number.to_bytes(8, 'little').hex()}"
    first = lock.read_bytes()
    assert len(first) == 84 and first[20:].rstrip(b"\0") == b"127.0.1.1"
    wait_until(lambda: lock.read_bytes() != first, "the lock is not kept")
    assert (export.guest / "guest.vmx.lck").exists()
    swap = export.guest / "guest.vswp"
    assert (swap.stat().st_size, swap.stat().st_blocks) == (256 << 20, 0)
    assert content_id(before) != content_id((export.guest / "guest.vmdk").read_text())
    done(vm.PowerOffVM_Task())
    names = sorted(one.name for one in export.guest.iterdir())
    assert names == ["guest-flat.vmdk", "guest.nvram", "guest.vmdk", "guest.vmx", "vmware.log"]


def test_another_hosts_lock_refuses_power_on_while_it_is_kept(
    lab: Practice, export: Export
) -> None:
    """One that is not written anew any more is broken."""
    vm, _engine = guest_on(lab, export)
    with practice(nas=QUICK) as other:
        mounted(hosts_of(other)[1], export.spec())
        twin = registered(other, "[nas] guest/guest.vmx", hosts_of(other)[1])
        done(twin.PowerOnVM_Task())
        with pytest.raises(vim.fault.FileLocked):
            done(vm.PowerOnVM_Task())
        done(twin.PowerOffVM_Task())
    (export.guest / "guest.vmx.lck").write_bytes(bytes(84))  # of a host that died
    done(vm.PowerOnVM_Task())
    assert vm.runtime.powerState == "poweredOn"


def test_a_machine_that_is_off_moves_by_its_files(lab: Practice, export: Export) -> None:
    """With the same bytes, and still thin."""
    vm, _engine = guest_on(lab, export)
    before = (export.guest / "guest-flat.vmdk").read_bytes()
    target = next(one for one in lab.inventory.datastores if one.name == "ds2")
    done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target.ref)))
    moved = lab.folder / "ds2" / "guest" / "guest-flat.vmdk"
    assert moved.read_bytes() == before
    assert moved.stat().st_blocks * 512 < len(before) // 2
    assert list(export.folder.iterdir()) == []


def test_a_machine_waits_for_a_server_that_was_killed_and_goes_on(tmp_path: Path) -> None:
    """Meanwhile the datastore is inaccessible; then it moves away, and nothing is lost."""
    needs_nfs_datastores()
    run(tmp_path, "repo", "init")
    words = ("backup", "image", "--vm", "guest", build(GuestKind.TINY))
    point = str(run_json(tmp_path, *words)["point_id"])
    address = own_address()
    places = ("--bind", address, "--portmap", "own", "--client", "127.0.0.0/8")
    words = ("export", "nfs", point, "--writable", *places)
    with practice(nas=QUICK) as lab:
        host = hosts_of(lab)[0]
        with serving(tmp_path, *words) as (process, document):
            datastore = mounted(host, nas_spec(address, document["exports"][0]["path"]))
            files = lab.library.site.datastores.get("nas").files
            (raw,) = files.list("")
            descriptor = replace(flat_descriptor("guest", raw.size_bytes), extent_name=raw.name)
            files.replace("guest.vmdk", descriptor.text().encode())
            files.replace("guest.vmx", VMX.encode())
            vm = registered(lab, "[nas] guest.vmx", host)
            (engine,) = lab.library.list()
            console = booted(lab, vm, engine)
            process.send_signal(signal.SIGKILL)
            process.wait()
        wait_until(lambda: not datastore.summary.accessible, "nobody notices")
        mount = datastore.host[0].mountInfo
        assert (mount.accessible, mount.inaccessibleReason) == (False, "AllPathsDown_Start")
        assert vm.runtime.connectionState == "inaccessible"
        silent = console.mark
        with serving(tmp_path, *words):
            acknowledged(engine, silent)
            wait_until(lambda: datastore.summary.accessible, "it stays inaccessible")
            target = next(one for one in lab.inventory.datastores if one.name == "ds2")
            done(vm.RelocateVM_Task(vim.vm.RelocateSpec(datastore=target.ref)))
            number = acknowledged(engine, console.mark)
            assert files.list("") == []
            host.configManager.datastoreSystem.RemoveDatastore(datastore)
            done(vm.PowerOffVM_Task())
            moved = lab.folder / "ds2" / engine.config.folder.path / raw.name
            assert unbroken(moved) >= number
