"""The calls of instant recovery against vcsim, which nobody here wrote.

vcsim mounts nothing: `localPath` is a folder of this machine, and a registered VM has no devices.
So this shows calls, their order and their repetition; what they do is shown in the lab.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim

from tests.support.vcsim import vcsim
from vmware.captured_vm import CapturedPlacement
from vmware.datastore_path import DatastorePath
from vmware.datastores import list_datastores
from vmware.errors import BusyError
from vmware.inventory import find_vms
from vmware.isolated_network import add_isolated_network, remove_isolated_network
from vmware.nas_datastore import (
    MountObstacle,
    NasExport,
    NasMountError,
    find_nas,
    mount_nas,
    unmount_nas,
    vmkernel_addresses,
)
from vmware.networks import list_networks
from vmware.new_vm import unregister_vm
from vmware.placement import WantedPlace, choose_place
from vmware.register import find_registered, register_vm
from vmware.relocate import files_on, relocate_vm
from vmware.session import Session

pytestmark = pytest.mark.integration

EXPORT = NasExport(
    name="holdfast-0a1b2c3d", remote_host="192.0.2.7", remote_path="/holdfast/0a1b2c3d"
)
NOWHERE = CapturedPlacement(
    folder_path="", datacenter_path="", resource_pool_path="", host="", cluster="", datastore=""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What vcsim takes for a mounted export: a folder with the files that it wants to see."""
    root = tmp_path_factory.mktemp("vcsim")
    vm = root / EXPORT.name / "web"
    vm.mkdir(parents=True)
    for name in ("web.vmx", "web.nvram", "vmware.log"):
        vm.joinpath(name).touch()
    before = Path.cwd()
    os.chdir(root)  # `localPath` is relative to where vcsim runs
    yield root
    os.chdir(before)


@pytest.fixture(scope="module")
def session(folder: Path) -> Iterator[Session]:
    assert folder
    with vcsim() as server, server.connect() as session:
        yield session


@pytest.fixture
def hosts(session: Session) -> list[str]:
    view = session.content.viewManager.CreateContainerView(
        session.content.rootFolder, [vim.HostSystem], True
    )
    return sorted(host._GetMoId() for host in view.view)[:2]


def test_an_export_is_mounted_on_hosts_used_and_unmounted_in_order(
    session: Session, hosts: list[str]
) -> None:
    """Mounting twice is mounting once; nothing is unmounted while a VM is on it; and afterwards
    nothing is there."""
    moref = mount_nas(session, EXPORT, hosts)
    assert mount_nas(session, EXPORT, hosts) == moref
    place = choose_place(session, WantedPlace(), NOWHERE, 0)
    vmx = DatastorePath(EXPORT.name, "web/web.vmx")

    def register() -> str:
        return register_vm(
            session,
            vmx,
            name="web",
            folder_moref=place.folder_moref,
            pool_moref=place.pool_moref,
            host_moref=place.host_moref,
            datacenter_moref=place.datacenter_moref,
        )

    vm = register()
    assert register() == vm
    assert find_registered(session, vmx, place.datacenter_moref) == vm
    found = find_nas(session, EXPORT)
    assert found is not None and found.vm_morefs == (vm,)
    with pytest.raises(BusyError, match=vm):
        unmount_nas(session, EXPORT)
    unregister_vm(session, vm)
    unregister_vm(session, vm)
    unmount_nas(session, EXPORT)
    unmount_nas(session, EXPORT)
    assert find_nas(session, EXPORT) is None
    assert find_registered(session, vmx, place.datacenter_moref) is None


def test_a_name_that_another_datastore_has_is_refused(session: Session, hosts: list[str]) -> None:
    """The message says which host, the error says what is in the way."""
    taken = NasExport(name="LocalDS_0", remote_host="192.0.2.7", remote_path="/holdfast/x")
    with pytest.raises(NasMountError) as caught:
        mount_nas(session, taken, hosts[:1])
    assert caught.value.obstacle is MountObstacle.NAME_TAKEN


def test_vmkernel_addresses_are_those_of_the_hosts(session: Session, hosts: list[str]) -> None:
    """Only they may mount."""
    assert vmkernel_addresses(session, hosts) == ("127.0.0.1",)


def test_an_isolated_network_is_made_once_and_removed_without_a_trace(
    session: Session, hosts: list[str]
) -> None:
    """Switch and port group, both by our name; removing twice is removing once."""
    name = "holdfast-0a1b2c3d"
    for _ in range(2):
        assert add_isolated_network(session, hosts[0], name).name == name
    assert name in [network.name for network in list_networks(session)]
    for _ in range(2):
        remove_isolated_network(session, hosts[0], name)
    assert name not in [network.name for network in list_networks(session)]


def test_a_network_that_somebody_else_called_so_is_left_alone(
    session: Session, hosts: list[str]
) -> None:
    """A switch with an uplink is never ours."""
    remove_isolated_network(session, hosts[0], "vSwitch0")
    host: Any = session.object(vim.HostSystem, hosts[0])
    assert "vSwitch0" in [switch.name for switch in host.config.network.vswitch]


def test_a_move_is_asked_for_with_every_disk(session: Session) -> None:
    """vcsim moves references only; that files stay behind is then seen."""
    (vm,) = find_vms(session, ["DC0_H0_VM0"])
    datastore = vm.disks[0].file_name.partition("]")[0][1:]
    assert files_on(session, vm.moref, datastore)
    (target,) = [item.moref for item in list_datastores(session) if item.name == datastore]
    relocate_vm(session, vm.moref, target)
    assert files_on(session, vm.moref, datastore), "its files did not move"
