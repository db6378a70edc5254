"""Export and import leases, tickets and tags of the practice vCenter, by pyVmomi and qemu-img."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from pyVmomi import vim

from lab.esx.vm_state import PowerState
from lab.faults import FaultName
from tests.support.http_fetch import connect, fetch
from tests.support.lab import client
from tests.support.lab_machines import Practice, disk, disks_of, done, practice
from tests.support.needs import needs
from tests.support.ovf_package import OVF

MIB = 1 << 20
DISK_BYTES = 40 * MIB + 1024
STREAM = {"Content-Type": "application/x-vnd.vmware-streamVmdk"}


@pytest.fixture
def lab() -> Iterator[Practice]:
    with practice() as lab:
        yield lab


def make_vm(lab: Practice) -> Any:
    """A VM that is off, with one disk holding some data."""
    vm = lab.create("web", disk(size_bytes=DISK_BYTES))
    with flat(lab).open("r+b") as file:
        file.write(os.urandom(MIB))
        file.seek(DISK_BYTES - 512)
        file.write(os.urandom(512))
    return vm


def flat(lab: Practice) -> Path:
    return lab.folder / "ds1" / "web" / "web-flat.vmdk"


def cookie(lab: Practice) -> dict[str, str]:
    return {"Cookie": lab.instance._stub.cookie.split(";")[0]}


def vcenter_url(lab: Practice, path: str) -> str:
    authority = f"{lab.vcenter.address}:{lab.vcenter.port}"
    return f"https://{authority}/folder/{path}?dcPath=DC0&dsName=ds1"


def wait_for(lease: Any, *states: str) -> str:
    """Poll as clients do, until the lease is in one of the states."""
    deadline_s = time.monotonic() + 20
    while (state := lease.state) not in states:
        assert time.monotonic() < deadline_s, state
        time.sleep(0.01)
    return str(state)


def ready(lease: Any) -> Any:
    """The device URLs of a lease, once it is ready."""
    assert wait_for(lease, "ready", "error") == "ready", lease.error
    return lease.info.deviceUrl


def check_stream(stream: bytes, raw: Path, folder: Path) -> None:
    """qemu-img finds the VMDK sound and equal to the raw disk."""
    needs("qemu-img")
    vmdk = folder / "out.vmdk"
    vmdk.write_bytes(stream)
    compare = ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", raw, vmdk]
    for command in (["qemu-img", "check", "-f", "vmdk", vmdk], compare):
        subprocess.run(command, check=True, capture_output=True)


def raw_to_stream(raw: Path, folder: Path) -> bytes:
    """What qemu-img makes of a raw disk: an upload that nobody here wrote."""
    needs("qemu-img")
    vmdk = folder / "in.vmdk"
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"]
    subprocess.run([*convert, raw, vmdk], check=True, capture_output=True)
    return vmdk.read_bytes()


def test_an_export_is_the_disk(lab: Practice, tmp_path: Path) -> None:
    """The streamed VMDK is the VM's disk, the manifest fits, and afterwards nothing is held."""
    lease = make_vm(lab).ExportVm()
    shown, nvram = ready(lease)
    assert (shown.disk, shown.targetId, nvram.disk) == (True, "disk-0.vmdk", False)
    assert shown.key.endswith("/ParaVirtualSCSIController0:0")
    assert lease.info.totalDiskCapacityInKB == DISK_BYTES >> 10
    status, stream = fetch(shown.url)
    assert status == 200
    check_stream(stream, flat(lab), tmp_path)
    assert fetch(nvram.url) == (200, flat(lab).with_name("web.nvram").read_bytes())
    entry = next(entry for entry in lease.HttpNfcLeaseGetManifest() if entry.key == shown.key)
    assert (entry.sha1, entry.size) == (hashlib.sha1(stream).hexdigest(), len(stream))
    lease.HttpNfcLeaseProgress(100)
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    assert fetch(shown.url)[0] == 500
    assert lab.vcenter.file_locks.all_locks() == []


def test_an_export_of_a_snapshot_is_the_merged_chain(lab: Practice, tmp_path: Path) -> None:
    """Base and delta come as one disk, as they were when the snapshot was made."""
    needs("qemu-io", "qemu-img")
    vm = make_vm(lab)
    done(vm.CreateSnapshot("one", "", False, False))
    (leaf,) = disks_of(vm.config)
    delta = (
        lab.folder / "ds1" / leaf.backing.fileName.split("] ")[1].replace(".vmdk", "-delta.vmdk")
    )
    base = f"backing.driver=raw,backing.file.filename={flat(lab)}"
    chain = f"driver=qcow2,file.filename={delta},{base}"
    write = ["qemu-io", "-c", "write -P 0x5a 1536k 600k", "--image-opts", chain]
    subprocess.run(write, check=True, capture_output=True)
    merged = tmp_path / "merged.raw"
    convert = ["qemu-img", "convert", "--image-opts", chain, "-O", "raw", merged]
    subprocess.run(convert, check=True, capture_output=True)
    second = done(vm.CreateSnapshot("two", "", False, False))
    lease = second.ExportSnapshot()
    shown, _ = ready(lease)
    check_stream(fetch(shown.url)[1], merged, tmp_path)
    lease.HttpNfcLeaseComplete()
    lease = vm.snapshot.rootSnapshotList[0].snapshot.ExportSnapshot()
    shown, _ = ready(lease)
    check_stream(fetch(shown.url)[1], flat(lab), tmp_path)


def test_only_a_machine_that_is_off_is_exported_as_it_is(lab: Practice) -> None:
    """ExportVm of a running VM is InvalidPowerState; a second lease TaskInProgress."""
    vm = make_vm(lab)
    first = vm.ExportVm()
    with pytest.raises(vim.fault.TaskInProgress):
        vm.ExportVm()
    first.HttpNfcLeaseAbort(None)
    engine = lab.library.get(vm._moId)
    engine.power = PowerState.ON
    with pytest.raises(vim.fault.InvalidPowerState):
        vm.ExportVm()
    engine.power = PowerState.OFF


def test_a_lease_keeps_the_vm_where_it_is(lab: Practice) -> None:
    """While it is held the VM is not powered on, unregistered or destroyed; then it may be."""
    vm = make_vm(lab)
    lease = vm.ExportVm()
    ready(lease)
    with pytest.raises(vim.fault.MethodDisabled):
        done(vm.PowerOn())
    with pytest.raises(vim.fault.MethodDisabled):
        vm.Unregister()
    with pytest.raises(vim.fault.MethodDisabled):
        done(vm.Destroy())
    lease.HttpNfcLeaseAbort(None)
    done(vm.Destroy())
    assert not flat(lab).exists()


def test_a_lease_that_nobody_renews_times_out() -> None:
    """Progress renews it; afterwards everything says Timedout and nothing is held."""
    with practice(lease_timeout_s=0.3) as lab:
        vm = make_vm(lab)
        lease = vm.ExportVm()
        shown, _ = ready(lease)
        assert wait_for(lease, "error") == "error"
        assert isinstance(lease.error, vim.fault.Timedout)
        with pytest.raises(vim.fault.Timedout):
            lease.HttpNfcLeaseProgress(10)
        with pytest.raises(vim.fault.Timedout):
            lease.HttpNfcLeaseComplete()
        assert fetch(shown.url)[0] == 500
        assert lab.library.get(vm._moId).leases == frozenset()


def test_a_lease_ends_with_its_session(lab: Practice) -> None:
    """Nothing is held for a client that is gone."""
    vm = make_vm(lab)
    lease = vm.ExportVm()
    shown, _ = ready(lease)
    lab.vcenter.sessions.end_all()
    assert lab.library.get(vm._moId).leases == frozenset()
    assert fetch(shown.url)[0] == 500
    with pytest.raises(vim.fault.NotAuthenticated):
        lease.HttpNfcLeaseProgress(10)


def test_reading_over_http_and_nfc_exclude_each_other(lab: Practice) -> None:
    """A file that NFC has open is 500 at /folder, and the other way round."""
    shown, _ = ready(make_vm(lab).ExportVm())
    url = vcenter_url(lab, "web/web-flat.vmdk")
    lab.faults.arm(FaultName.SLOW_STREAM, amount=1 << 16, path="/nfc/*")
    slow, target = connect(shown.url)
    slow.request("GET", target)
    slow.getresponse().read(1)
    assert fetch(url, headers=cookie(lab))[0] == 500
    slow.close()
    deadline_s = time.monotonic() + 20
    while lab.vcenter.file_locks.all_locks():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    lab.faults.arm(FaultName.SLOW_STREAM, amount=1 << 16, path="/folder/*")
    slow, target = connect(url)
    slow.request("GET", target, headers=cookie(lab))
    slow.getresponse().read(1)
    assert fetch(shown.url)[0] == 500
    slow.close()


def test_a_lease_can_leave_the_host_to_the_client() -> None:
    """Then `*` stands for the address that the client knows."""
    with practice(lease_host_wildcard=True) as lab:
        shown, _ = ready(make_vm(lab).ExportVm())
        assert shown.url.startswith("https://*:")
        names = [host.name for host in lab.inventory.hosts]
        ports = [host.https_port for host in lab.inventory.hosts]
        name = names[ports.index(urlsplit(shown.url).port or 0)]
        assert fetch(shown.url.replace("*", name))[0] == 200


@pytest.mark.parametrize("name", [FaultName.LEASE_ERROR, FaultName.LEASE_STUCK])
def test_a_lease_can_fail_to_get_ready(lab: Practice, name: FaultName) -> None:
    """It goes to error, or stays initializing until it is aborted."""
    vm = make_vm(lab)
    lab.faults.arm(name, vm_name="web")
    lease = vm.ExportVm()
    if name is FaultName.LEASE_ERROR:
        assert wait_for(lease, "ready", "error") == "error"
        assert isinstance(lease.error, vim.fault.CannotAccessFile)
    else:
        assert lab.faults.wait_fired(name)
        assert lease.state == "initializing"
        lease.HttpNfcLeaseAbort(None)
        assert lease.state == "error"
    assert lab.library.get(vm._moId).leases == frozenset()


def test_an_import_makes_the_machine(lab: Practice, tmp_path: Path) -> None:
    """The disk of a spec is what was uploaded, also when the first upload broke off."""
    raw = tmp_path / "in.raw"
    raw.write_bytes(os.urandom(3 * MIB) + bytes(5 * MIB))
    stream = raw_to_stream(raw, tmp_path)
    lease = begin_import(lab, import_spec(8 * MIB))
    (shown,) = ready(lease)
    assert shown.importKey == "/new/ParaVirtualSCSIController0:0"
    broken = bytearray(stream)
    broken[-70_000:] = b"x" * 70_000
    assert fetch(shown.url, "POST", STREAM, bytes(broken))[0] == 500
    assert fetch(shown.url, "POST", {}, b"x")[0] == 415
    assert fetch(shown.url, "POST", STREAM, stream)[0] == 201
    (entry,) = lease.HttpNfcLeaseGetManifest()
    assert (entry.sha1, entry.size) == (hashlib.sha1(stream).hexdigest(), len(stream))
    lease.HttpNfcLeaseComplete()
    assert (lab.folder / "ds1" / "new" / "new-flat.vmdk").read_bytes() == raw.read_bytes()
    assert lab.machine("new").config.hardware.numCPU == 2


@pytest.mark.parametrize("way", ["abort", "session", "timeout"])
def test_an_import_that_is_not_completed_leaves_nothing(way: str) -> None:
    """However it ends: no machine, no file."""
    with practice(lease_timeout_s=0.5 if way == "timeout" else 300) as lab:
        lease = begin_import(lab, import_spec(MIB))
        ready(lease)
        if way == "abort":
            lease.HttpNfcLeaseAbort(None)
        elif way == "session":
            lab.vcenter.sessions.end_all()
        else:
            wait_for(lease, "error")
        assert lab.library.list() == []
        assert list((lab.folder / "ds1").iterdir()) == []


def test_an_import_is_cleared_away_when_its_stalled_upload_ends(
    lab: Practice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An abort does not wait for ever for a client that sends no more, nor does it leak the VM."""
    monkeypatch.setattr("lab.data_plane.lease._TRANSFER_END_S", 0.05)
    lease = begin_import(lab, import_spec(MIB))
    (shown,) = ready(lease)
    stalled, target = connect(shown.url)
    stalled.putrequest("POST", target)
    stalled.putheader("Content-Type", STREAM["Content-Type"])
    stalled.putheader("Content-Length", "100000")
    stalled.endheaders(b"KDMV")
    deadline_s = time.monotonic() + 20
    while not lab.vcenter.file_locks.all_locks():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    lease.HttpNfcLeaseAbort(None)
    assert lease.state == "error"
    stalled.close()
    while lab.library.list():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert list((lab.folder / "ds1").iterdir()) == []


def test_a_stream_of_another_size_is_refused(lab: Practice, tmp_path: Path) -> None:
    """The disk was made with the spec's capacity; an upload cannot change it."""
    raw = tmp_path / "in.raw"
    raw.write_bytes(bytes(2 * MIB))
    (shown,) = ready(begin_import(lab, import_spec(MIB)))
    status, page = fetch(shown.url, "POST", STREAM, raw_to_stream(raw, tmp_path))
    assert (status, b"2097152" in page) == (500, True)


def test_an_ovf_package_is_imported(lab: Practice, tmp_path: Path) -> None:
    """Descriptor to spec, uploads by device id, hardware and network as described."""
    raw = tmp_path / "in.raw"
    raw.write_bytes(os.urandom(MIB))
    content = lab.instance.content
    network = next(
        one for one in content.rootFolder.childEntity[0].network if one.name == "VM Network"
    )
    params = vim.OvfManager.CreateImportSpecParams(
        locale="",
        deploymentOption="",
        entityName="packed",
        diskProvisioning="thin",
        networkMapping=[vim.OvfManager.NetworkMapping(name="inside", network=network)],
    )
    pool, store = pool_of(lab), lab.instance.content.rootFolder.childEntity[0].datastore[0]
    parsed = content.ovfManager.ParseDescriptor(
        OVF, vim.OvfManager.ParseDescriptorParams(locale="", deploymentOption="")
    )
    assert [one.name for one in parsed.network] == ["inside"]
    result = content.ovfManager.CreateImportSpec(OVF, pool, store, params)
    assert not result.error
    assert [(item.path, item.create) for item in result.fileItem] == [
        ("disk1.vmdk", False),
        ("a.nvram", True),
    ]
    lease = pool.ImportVApp(result.importSpec, folder_of(lab), None)
    urls = {shown.importKey: shown.url for shown in ready(lease)}
    stream = raw_to_stream(raw, tmp_path)
    assert fetch(urls[result.fileItem[0].deviceId], "POST", STREAM, stream)[0] == 201
    nvram_url = urls[result.fileItem[1].deviceId]
    assert fetch(nvram_url, "PUT", {}, b"variables")[0] == 412
    assert fetch(nvram_url, "PUT", {"Overwrite": "t"}, b"variables")[0] == 201
    lease.HttpNfcLeaseComplete()
    config = lab.machine("packed").config
    assert (config.hardware.numCPU, config.hardware.memoryMB, config.firmware) == (2, 512, "efi")
    assert [nic.deviceInfo.summary for nic in nics(config)] == ["VM Network"]
    home = lab.folder / "ds1" / "packed"
    assert (home / "packed-flat.vmdk").read_bytes() == raw.read_bytes()
    assert (home / "packed.nvram").read_bytes() == b"variables"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("<Envelope", "<Envelop"), vim.fault.OvfXmlFormat),
        (("VirtualSCSI", "Floptical"), vim.fault.OvfUnsupportedSubType),
        (('ovf:capacity="1048576"', 'ovf:capacity="much"'), vim.fault.OvfInvalidValue),
        (("ovf:/disk/vmdisk1", "ovf:/disk/none"), vim.fault.OvfInvalidPackage),
        (("<?xml", "<!DOCTYPE a><?xml"), vim.fault.OvfXmlFormat),
    ],
)
def test_a_wrong_ovf_is_told_in_the_result(
    lab: Practice, change: tuple[str, str], fault: type[Exception]
) -> None:
    """The call succeeds, its result says what is wrong."""
    params = vim.OvfManager.CreateImportSpecParams(locale="", deploymentOption="", entityName="p")
    store = lab.instance.content.rootFolder.childEntity[0].datastore[0]
    manager = lab.instance.content.ovfManager
    result = manager.CreateImportSpec(OVF.replace(*change), pool_of(lab), store, params)
    assert [type(error) for error in result.error] == [fault]
    assert result.importSpec is None


def test_a_ticket_opens_a_file_on_the_host(lab: Practice) -> None:
    """As the product's clients do it: host by name and port, one ticket per request, pinned."""
    make_vm(lab)
    host = lab.instance.content.rootFolder.childEntity[0].hostFolder.childEntity[0].host[0]
    summary = host.summary.config
    url = f"https://{summary.name}:{summary.port}/folder/web/web-flat.vmdk?dsName=ds1"
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
    ticket = lab.instance.content.sessionManager.AcquireGenericServiceTicket(spec)
    connection, target = connect(url)
    headers = {"Cookie": f"vmware_cgi_ticket={ticket.id}", "Range": "bytes=0-1023"}
    connection.request("GET", target, headers=headers)
    certificate = connection.sock.getpeercert(binary_form=True)
    body = connection.getresponse().read()
    connection.close()
    assert body == flat(lab).read_bytes()[:1024]
    assert hashlib.sha1(certificate).hexdigest() == ticket.sslThumbprint.replace(":", "").lower()
    assert fetch(url, headers=headers)[0] == 401


def test_a_session_opens_files_on_vcenter_until_it_ends(lab: Practice) -> None:
    """The SOAP cookie is the HTTP cookie."""
    make_vm(lab)
    url, headers = vcenter_url(lab, "web/web.vmx"), cookie(lab)
    assert fetch(url, headers=headers) == (200, flat(lab).with_name("web.vmx").read_bytes())
    lab.instance.content.sessionManager.Logout()
    assert fetch(url, headers=headers)[0] == 401


def test_reading_files_does_not_keep_a_session_alive() -> None:
    """Only calls do; a client that reads for long must say that it is there."""
    now = [0.0]
    with practice(vcenter_options={"clock": lambda: now[0]}) as lab:
        make_vm(lab)
        url, headers = vcenter_url(lab, "web/web.vmx"), cookie(lab)
        for _ in range(3):
            now[0] += 700
            status = fetch(url, headers=headers)[0]
        assert status == 401
        with pytest.raises(vim.fault.NotAuthenticated):
            lab.instance.CurrentTime()


def test_a_session_is_dropped_in_the_middle_of_reading(lab: Practice) -> None:
    """The next range is 401, and the SOAP session is gone with it."""
    make_vm(lab)
    lab.faults.arm(FaultName.SESSION_DROP, method="folder")
    assert fetch(vcenter_url(lab, "web/web.vmx"), headers=cookie(lab))[0] == 401
    with pytest.raises(vim.fault.NotAuthenticated):
        lab.instance.content.searchIndex.FindByUuid(None, "x", True, True)


def test_a_ticket_needs_its_privileges_on_the_whole_vcenter(lab: Practice) -> None:
    """A role on the datacenter reads through vCenter, and is 403 at the host."""
    make_vm(lab)
    vcenter, accounts = lab.vcenter, lab.vcenter.accounts
    accounts.add_user("backup@lab", "x")
    wanted = ["Datastore.Browse", "Datastore.FileManagement"]
    role = accounts.add_role("files", wanted)
    accounts.permit("backup@lab", accounts.add_role("login", []), vcenter.root_folder)
    accounts.permit("backup@lab", role, lab.inventory.datacenter)
    with client(vcenter, "backup@lab", "x") as instance:
        headers = {"Cookie": instance._stub.cookie.split(";")[0]}
        assert fetch(vcenter_url(lab, "web/web.vmx"), headers=headers)[0] == 200
        host = lab.inventory.hosts[0]
        url = f"https://{host.name}:{host.https_port}/folder/web/web.vmx?dsName=ds1"
        spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
        for expected in (403, 200):
            ticket = instance.content.sessionManager.AcquireGenericServiceTicket(spec)
            assert fetch(url, headers={"Cookie": f"vmware_cgi_ticket={ticket.id}"})[0] == expected
            accounts.permit("backup@lab", role, vcenter.root_folder)


def pool_of(lab: Practice) -> Any:
    root = lab.instance.content.rootFolder
    return root.childEntity[0].hostFolder.childEntity[0].resourcePool


def folder_of(lab: Practice) -> Any:
    return lab.instance.content.rootFolder.childEntity[0].vmFolder


def nics(config: Any) -> list[Any]:
    kind = vim.vm.device.VirtualEthernetCard
    return [device for device in config.hardware.device if isinstance(device, kind)]


def import_spec(size_bytes: int) -> Any:
    controller = vim.vm.device.ParaVirtualSCSIController(key=-1, busNumber=0, sharedBus="noSharing")
    change = vim.vm.device.VirtualDeviceSpec(operation="add", device=controller)
    config = vim.vm.ConfigSpec(
        name="new",
        numCPUs=2,
        memoryMB=64,
        files=vim.vm.FileInfo(vmPathName="[ds1]"),
        deviceChange=[change, disk(size_bytes=size_bytes, unit=0)],
    )
    return vim.vm.VmImportSpec(configSpec=config)


def begin_import(lab: Practice, spec: Any) -> Any:
    return pool_of(lab).ImportVApp(spec, folder_of(lab), None)
