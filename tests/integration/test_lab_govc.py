"""govc, which nobody here wrote, on the practice vCenter: browse, search, change."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.esx.datastore import LabDatastore
from lab.guests import GuestKind
from lab.practice_lab import PracticeLab
from lab.vcenter.inventory import Inventory, add_synthetic_machines, build_inventory
from lab.vcenter.lab_vcenter import LabVcenter
from tests.support.govc import Govc, GovcError, govc_for
from tests.support.needs import needs

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def vcenter() -> Iterator[LabVcenter]:
    with LabVcenter() as running:
        yield running


@pytest.fixture(scope="module")
def inventory(vcenter: LabVcenter, tmp_path_factory: pytest.TempPathFactory) -> Inventory:
    folder = tmp_path_factory.mktemp("datastore1")
    folder.joinpath("web").mkdir()
    folder.joinpath("web", "web.vmx").write_text("config")
    folder.joinpath("web", "web-flat.vmdk").write_bytes(bytes(4096))
    made = build_inventory(vcenter, stores=[LabDatastore("datastore1", folder)])
    add_synthetic_machines(made, 5)
    return made


@pytest.fixture(scope="module")
def govc(vcenter: LabVcenter, inventory: Inventory) -> Govc:
    return govc_for(vcenter)


def test_about_says_vcenter_8(govc: Govc, vcenter: LabVcenter) -> None:
    """Name, version and the instance's uuid."""
    about = json.loads(govc("about", "-json"))["about"]
    assert (about["apiType"], about["apiVersion"]) == ("VirtualCenter", "8.0.3.0")
    assert about["instanceUuid"] == vcenter.instance_uuid


def test_the_inventory_is_listed_and_searched(govc: Govc) -> None:
    """`ls` walks folders, `find` uses a container view, `tree` everything."""
    assert govc("ls").split() == ["/DC0/vm", "/DC0/host", "/DC0/datastore", "/DC0/network"]
    machines = [f"/DC0/vm/vm{number:04d}" for number in range(1, 6)]
    assert govc("ls", "/DC0/vm").split() == machines
    assert govc("find", "/", "-type", "m").split() == machines
    assert govc("find", "/", "-type", "h").splitlines() == [
        "/DC0/host/DC0_C0/esx1.dc0.lab",
        "/DC0/host/DC0_C0/esx2.dc0.lab",
    ]
    assert "DC0_DVPG0" in govc("tree")


def test_machines_hosts_datacenters_and_datastores_are_described(govc: Govc) -> None:
    """What `*.info` prints comes from the properties that a backup product reads, too."""
    machine = json.loads(govc("vm.info", "-json", "vm0001"))["virtualMachines"][0]
    assert machine["config"]["hardware"]["device"][-1]["backing"]["fileName"].endswith(
        "vm0001/vm0001.vmdk"
    )
    assert "Power state:  poweredOff" in govc("vm.info", "vm0001")
    uuid = machine["config"]["uuid"]
    assert "vm0001" in govc("vm.info", "-vm.uuid", uuid)
    assert "Virtual Machines:  5" in govc("datacenter.info")
    assert "Type:      VMFS" in govc("datastore.info")
    assert "State:           connected" in govc("host.info", "-host", "esx1.dc0.lab")
    assert "disk-1000-0" in govc("device.ls", "-vm", "vm0001")
    assert govc("object.collect", "-s", "vm/vm0001", "runtime.powerState") == "poweredOff\n"


def test_datastore_files_are_listed_made_moved_and_removed(govc: Govc) -> None:
    """DatastoreBrowser and FileManager, with tasks; a missing file is an error."""
    assert govc("datastore.ls", "web").split() == ["web-flat.vmdk", "web.vmx"]
    govc("datastore.mkdir", "-p", "a/b")
    govc("datastore.mv", "web/web.vmx", "a/b/moved.vmx")
    assert govc("datastore.ls", "a/b").split() == ["moved.vmx"]
    govc("datastore.rm", "a")
    with pytest.raises(GovcError, match="was not found"):
        govc("datastore.rm", "a")


def test_folders_are_made_filled_and_refuse_removal_while_they_are(govc: Govc) -> None:
    """Tasks that govc waits for through WaitForUpdatesEx; a fault reaches the user as its text."""
    govc("folder.create", "/DC0/vm/sub")
    govc("object.mv", "/DC0/vm/vm0005", "/DC0/vm/sub")
    assert govc("ls", "/DC0/vm/sub").split() == ["/DC0/vm/sub/vm0005"]
    with pytest.raises(GovcError, match="not empty"):
        govc("object.destroy", "/DC0/vm/sub")
    govc("object.mv", "/DC0/vm/sub/vm0005", "/DC0/vm")
    govc("object.destroy", "/DC0/vm/sub")
    assert "Folder.moveInto" in govc("tasks", "-l")


def test_switches_and_port_groups_come_and_go(govc: Govc) -> None:
    """A port group makes a network; one that is in use stays."""
    host = ("-host", "esx1.dc0.lab")
    govc("host.vswitch.add", *host, "isolated")
    govc("host.portgroup.add", *host, "-vswitch", "isolated", "holdfast-test")
    assert "/DC0/network/holdfast-test" in govc("ls", "/DC0/network").splitlines()
    govc("host.portgroup.remove", *host, "holdfast-test")
    govc("host.vswitch.remove", *host, "isolated")
    assert "holdfast-test" not in govc("ls", "/DC0/network")
    with pytest.raises(GovcError, match="in use"):
        govc("host.portgroup.remove", "-host", "esx2.dc0.lab", "VM Network")


def test_custom_attributes_roles_and_events(govc: Govc) -> None:
    """Definitions, values, roles with checked privilege ids, and who logged in."""
    govc("fields.add", "owner")
    govc("fields.set", "owner", "ops", "/DC0/vm/vm0002")
    assert "ops" in govc("fields.info", "-n", "owner", "/DC0/vm/vm0002")
    govc("role.create", "snapshots", "VirtualMachine.State.CreateSnapshot")
    assert "VirtualMachine.State.CreateSnapshot" in govc("role.ls", "snapshots")
    with pytest.raises(GovcError, match="Unknown privileges"):
        govc("role.create", "wrong", "VirtualMachine.State.Fly")
    assert "logged in" in govc("events")


def test_a_wrong_password_is_refused(govc: Govc) -> None:
    """InvalidLogin, in govc's words."""
    with pytest.raises(GovcError, match="incorrect user name or password"):
        govc("ls", GOVC_PASSWORD="wrong")


@pytest.fixture(scope="module")
def practice() -> Iterator[PracticeLab]:
    needs("qemu-system-x86_64", "setpriv", "busybox", "mkfs.ext4", "grub-mkimage")
    # Not pytest's folder: the path of a socket below it would be too long.
    with (
        tempfile.TemporaryDirectory(prefix="holdfast-lab-") as name,
        PracticeLab(Path(name, "datastores"), Path(name), [GuestKind.TINY]) as lab,
    ):
        yield lab


@pytest.fixture(scope="module")
def guest_govc(practice: PracticeLab) -> Govc:
    return govc_for(practice.vcenter)


def test_a_running_guest_has_snapshots_made_listed_and_removed(guest_govc: Govc) -> None:
    """The chain in the datastore follows: a delta per snapshot, and only the base at the end."""
    files = ("datastore.ls", "-ds", "datastore1", "tiny")
    for name in ("one", "two"):
        guest_govc("snapshot.create", "-vm", "tiny", "-m=false", name)
    assert guest_govc("snapshot.tree", "-vm", "tiny").split() == ["one", "two", "."]
    assert {"tiny-000001.vmdk", "tiny-000002.vmdk"} <= set(guest_govc(*files).split())
    guest_govc("snapshot.remove", "-vm", "tiny", "one")
    assert guest_govc("snapshot.tree", "-vm", "tiny").split() == ["two", "."]
    guest_govc("snapshot.remove", "-vm", "tiny", "*")
    assert guest_govc("snapshot.tree", "-vm", "tiny") == ""
    assert not [name for name in guest_govc(*files).split() if name.startswith("tiny-0000")]


def test_a_guest_is_powered_off_and_on(guest_govc: Govc) -> None:
    """The second of the same kind is refused with InvalidPowerState."""
    guest_govc("vm.power", "-off", "tiny")
    assert "Power state:  poweredOff" in guest_govc("vm.info", "tiny")
    with pytest.raises(GovcError):
        guest_govc("vm.power", "-off", "tiny")
    guest_govc("vm.power", "-on", "tiny")
    assert "Power state:  poweredOn" in guest_govc("vm.info", "tiny")


def test_tags_are_made_attached_and_listed(guest_govc: Govc) -> None:
    """Over the REST interface, logged in with the same user."""
    guest_govc("tags.category.create", "-t", "VirtualMachine", "purpose")
    guest_govc("tags.create", "-c", "purpose", "backup")
    guest_govc("tags.attach", "backup", "/DC0/vm/tiny")
    assert guest_govc("tags.ls").split() == ["backup", "purpose"]
    machine = guest_govc("find", "-i", "/", "-type", "m", "-name", "tiny").strip()
    assert guest_govc("tags.attached.ls", "backup").strip() == machine
