"""The practice vCenter enforces what a backup needs: the documented role is enough, less is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pyVmomi import vim

from tests.support.http_fetch import fetch
from tests.support.lab import client
from tests.support.lab_machines import Practice, disk, disks_of, done, practice
from vmware.privileges import BACKUP, PRIVILEGES

USER, PASSWORD = "backup@lab", "practice"
NEEDED = [name for purpose in BACKUP for name in PRIVILEGES[purpose]]


@pytest.fixture(scope="module")
def lab() -> Iterator[Practice]:
    with practice() as lab:
        lab.create("web", disk(size_bytes=1 << 20))
        lab.vcenter.accounts.add_user(USER, PASSWORD)
        yield lab


def allow(lab: Practice, privileges: list[str]) -> None:
    accounts = lab.vcenter.accounts
    accounts.permit(USER, accounts.add_role("backup", privileges), lab.vcenter.root_folder)


class Steps:
    """The calls of a backup, in order; `refused` is the first that was not permitted."""

    def __init__(self, lab: Practice) -> None:
        self.lab = lab

    def refused(self) -> str | None:
        with client(self.lab.vcenter, USER, PASSWORD) as instance:
            self.instance = instance
            self.vm = vim.VirtualMachine(self.lab.machine("web")._moId, instance._stub)
            steps = (self.track, self.snapshot, self.changes, self.export, self.read, self.ticket)
            try:
                for step in (*steps, self.remove):
                    try:
                        step()
                    except vim.fault.NoPermission:
                        return step.__name__
            finally:
                admin = self.lab.machine("web")
                done(admin.RemoveAllSnapshots_Task())
        return None

    def track(self) -> None:
        done(self.vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))

    def snapshot(self) -> None:
        self.taken = done(self.vm.CreateSnapshot_Task("s", "", False, False))
        self.taken = vim.vm.Snapshot(self.taken._moId, self.instance._stub)

    def changes(self) -> None:
        assert disks_of(self.taken.config)
        self.vm.QueryChangedDiskAreas(self.taken, 2000, 0, "*")

    def export(self) -> None:
        self.taken.ExportSnapshot().HttpNfcLeaseAbort(None)

    def read(self) -> None:
        authority = f"{self.lab.vcenter.address}:{self.lab.vcenter.port}"
        cookie = {"Cookie": self.instance._stub.cookie.split(";")[0]}
        self._get(f"https://{authority}/folder/web/web-flat.vmdk?dcPath=DC0&dsName=ds1", cookie)

    def ticket(self) -> None:
        host = self.lab.inventory.hosts[0]
        url = f"https://{host.name}:{host.https_port}/folder/web/web-flat.vmdk?dsName=ds1"
        spec = vim.SessionManager.HttpServiceRequestSpec(url=url)
        ticket: Any = self.instance.content.sessionManager.AcquireGenericServiceTicket(spec)
        self._get(url, {"Cookie": f"vmware_cgi_ticket={ticket.id}"})

    def remove(self) -> None:
        done(self.taken.RemoveSnapshot_Task(False, True))

    def _get(self, url: str, headers: dict[str, str]) -> None:
        status, _ = fetch(url, headers=headers)
        if status == 403:
            raise vim.fault.NoPermission
        assert status == 200


def test_the_documented_role_is_enough_for_a_backup(lab: Practice) -> None:
    """Every step, with these privileges at the root and no other."""
    allow(lab, NEEDED)
    assert Steps(lab).refused() is None


@pytest.mark.parametrize(
    ("privilege", "step"),
    [
        ("VirtualMachine.Config.ChangeTracking", "track"),
        ("VirtualMachine.State.CreateSnapshot", "snapshot"),
        ("VirtualMachine.Provisioning.DiskRandomRead", "changes"),
        ("VApp.Export", "export"),
        ("Datastore.Browse", "read"),
        ("Datastore.FileManagement", "read"),
        ("VirtualMachine.State.RemoveSnapshot", "remove"),
    ],
)
def test_a_role_that_lacks_one_is_refused_there(lab: Practice, privilege: str, step: str) -> None:
    """Not earlier and not later."""
    allow(lab, [name for name in NEEDED if name != privilege])
    assert Steps(lab).refused() == step
