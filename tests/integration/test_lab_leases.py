"""Export and import leases, tickets and tags of the practice vCenter, by pyVmomi and qemu-img."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from lab.esx.errors import HostError
from lab.esx.site import NoTask
from lab.esx.vm_power import power_on
from lab.faults import FaultName
from tests.support.lab_site import DISK_BYTES, LabSite, connect, fetch, lab_site
from tests.support.needs import needs


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[LabSite]:
    with lab_site(tmp_path) as lab:
        yield lab


def wait_for(lease: Any, *states: str) -> str:
    """Poll as clients do, until the lease is in one of the states."""
    deadline_s = time.monotonic() + 20
    while (state := lease.state) not in states:
        assert time.monotonic() < deadline_s, state
        time.sleep(0.01)
    return str(state)


def ready_export(lab: LabSite) -> tuple[Any, Any]:
    """A ready lease of the VM's ExportVm, and its device URLs."""
    lease = lab.on_client(lab.add_machine()).ExportVm()
    assert wait_for(lease, "ready", "error") == "ready"
    return lease, lease.info.deviceUrl


def test_an_export_is_the_disk(lab: LabSite, tmp_path: Path) -> None:
    """qemu-img finds the streamed VMDK sound and equal to the VM's disk; the manifest fits."""
    needs("qemu-img")
    lease, (disk, nvram) = ready_export(lab)
    assert (disk.disk, disk.targetId, nvram.disk) == (True, "disk-0.vmdk", False)
    assert disk.key.endswith("/ParaVirtualSCSIController0:0")
    assert lease.info.totalDiskCapacityInKB == DISK_BYTES >> 10
    status, stream = fetch(disk.url)
    assert status == 200
    vmdk = tmp_path / "out.vmdk"
    vmdk.write_bytes(stream)
    subprocess.run(["qemu-img", "check", "-f", "vmdk", vmdk], check=True, capture_output=True)
    flat = lab.root / "web" / "web-flat.vmdk"
    subprocess.run(
        ["qemu-img", "compare", "-f", "raw", "-F", "vmdk", flat, vmdk],
        check=True,
        capture_output=True,
    )
    assert fetch(nvram.url) == (200, (lab.root / "web" / "web.nvram").read_bytes())
    entry = next(entry for entry in lease.HttpNfcLeaseGetManifest() if entry.key == disk.key)
    assert (entry.sha1, entry.size) == (hashlib.sha1(stream).hexdigest(), len(stream))
    lease.HttpNfcLeaseProgress(100)
    lease.HttpNfcLeaseComplete()
    assert lease.state == "done"
    assert fetch(disk.url)[0] == 500
    assert lab.vcenter.file_locks.all_locks() == []


def test_a_lease_keeps_the_vm_where_it_is(lab: LabSite) -> None:
    """While it is held the VM is not powered on, unregistered or destroyed; then it may be."""
    lease, _ = ready_export(lab)
    engine = lab.library.list()[0]
    for act in (
        lambda: power_on(engine, NoTask()),
        lambda: lab.library.unregister(engine),
        lambda: lab.library.destroy(engine),
    ):
        with pytest.raises(HostError) as refused:
            act()
        assert refused.value.fault == "MethodDisabled"
    lease.HttpNfcLeaseAbort(None)
    lab.library.destroy(engine)
    assert list(lab.root.iterdir()) == []


def test_a_lease_that_nobody_renews_times_out(tmp_path: Path) -> None:
    """Progress renews; transfers alone do not; afterwards everything says Timedout."""
    with lab_site(tmp_path, lease_timeout_s=0.3) as lab:
        lease, (disk, _) = ready_export(lab)
        assert wait_for(lease, "error") == "error"
        assert isinstance(lease.error, vim.fault.Timedout)
        with pytest.raises(vim.fault.Timedout):
            lease.HttpNfcLeaseProgress(10)
        with pytest.raises(vim.fault.Timedout):
            lease.HttpNfcLeaseComplete()
        assert fetch(disk.url)[0] == 500
        assert lab.library.list()[0].leases == frozenset()


def test_a_lease_ends_with_its_session(lab: LabSite) -> None:
    """Nothing is held for a client that is gone, and another session does not see the lease."""
    lease, (disk, _) = ready_export(lab)
    session = lab.vcenter.sessions.all()[0]
    lab.vcenter.sessions.end(session)
    assert lab.library.list()[0].leases == frozenset()
    assert fetch(disk.url)[0] == 500
    with pytest.raises(vim.fault.NotAuthenticated):
        lease.HttpNfcLeaseProgress(10)


def test_reading_over_http_and_nfc_exclude_each_other(lab: LabSite) -> None:
    """A file that NFC has open is 500 at /folder, and the other way round."""
    _, (disk, _) = ready_export(lab)
    authority = f"{lab.vcenter.address}:{lab.vcenter.port}"
    flat = f"https://{authority}/folder/web/web-flat.vmdk?dcPath=DC0&dsName=datastore1"
    lab.vcenter.switches.arm(FaultName.SLOW_STREAM, amount=1 << 16, path="/nfc/*")
    slow, target = connect(disk.url)
    slow.request("GET", target)
    slow.getresponse().read(1)
    assert fetch(flat, headers=lab.cookie)[0] == 500
    slow.close()
    deadline_s = time.monotonic() + 20
    while lab.vcenter.file_locks.all_locks():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    lab.vcenter.switches.arm(FaultName.SLOW_STREAM, amount=1 << 16, path="/folder/*")
    slow, target = connect(flat)
    slow.request("GET", target, headers=lab.cookie)
    slow.getresponse().read(1)
    assert fetch(disk.url)[0] == 500
    slow.close()


@pytest.mark.parametrize("name", [FaultName.LEASE_ERROR, FaultName.LEASE_STUCK])
def test_a_lease_can_fail_to_get_ready(lab: LabSite, name: FaultName) -> None:
    """It goes to error, or stays initializing until it is aborted."""
    lab.vcenter.switches.arm(name, vm_name="web")
    lease = lab.on_client(lab.add_machine()).ExportVm()
    if name is FaultName.LEASE_ERROR:
        assert wait_for(lease, "ready", "error") == "error"
        assert isinstance(lease.error, vim.fault.CannotAccessFile)
    else:
        assert lab.vcenter.switches.wait_fired(name)
        assert lease.state == "initializing"
        lease.HttpNfcLeaseAbort(None)
        assert lease.state == "error"
    assert lab.library.list()[0].leases == frozenset()


def test_a_ticket_opens_a_file_on_the_host(lab: LabSite) -> None:
    """As the product's clients do it: host by name and port, one ticket per request, pinned."""
    lab.add_machine()
    host = lab.content.rootFolder.childEntity[0].hostFolder.childEntity[0].host[0]
    summary = host.summary.config
    url = f"https://{summary.name}:{summary.port}/folder/web/web-flat.vmdk?dsName=datastore1"
    spec = vim.SessionManager.HttpServiceRequestSpec(method="httpGet", url=url)
    ticket = lab.content.sessionManager.AcquireGenericServiceTicket(spec)
    connection, target = connect(url)
    cookie = {"Cookie": f"vmware_cgi_ticket={ticket.id}", "Range": "bytes=0-1023"}
    connection.request("GET", target, headers=cookie)
    certificate = connection.sock.getpeercert(binary_form=True)
    body = connection.getresponse().read()
    connection.close()
    assert body == (lab.root / "web" / "web-flat.vmdk").read_bytes()[:1024]
    assert hashlib.sha1(certificate).hexdigest() == ticket.sslThumbprint.replace(":", "").lower()
    assert fetch(url, headers=cookie)[0] == 401


def test_a_session_opens_files_on_vcenter_until_it_ends(lab: LabSite) -> None:
    """The SOAP cookie is the HTTP cookie."""
    lab.add_machine()
    authority = f"{lab.vcenter.address}:{lab.vcenter.port}"
    url = f"https://{authority}/folder/web/web.vmx?dcPath=DC0&dsName=datastore1"
    status, body = fetch(url, headers=lab.cookie)
    assert (status, body) == (200, (lab.root / "web" / "web.vmx").read_bytes())
    lab.content.sessionManager.Logout()
    assert fetch(url, headers=lab.cookie)[0] == 401
