"""Building a VM again against vcsim, which nobody here wrote: made, finished, undone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pyVmomi import vim

from tests.support.vcsim import vcsim
from vmware.captured_vm import CapturedAttribute, CapturedTag, CapturedVm
from vmware.config_capture import capture
from vmware.errors import RefusedError
from vmware.hardware_versions import newest_hardware
from vmware.inventory import find_vms, read_vm
from vmware.labels import give_labels
from vmware.marker import Marker, Purpose
from vmware.network_choice import choose_networks
from vmware.new_vm import (
    PLAIN_ANNOTATION,
    create_vm,
    destroy_unfinished_vm,
    find_by_instance_uuid,
    finish_vm,
    unregister_vm,
)
from vmware.patience import Patience
from vmware.placement import (
    Placement,
    PlacementError,
    WantedPlace,
    choose_place,
    reachable_networks,
)
from vmware.power import Origin, ShutDown, power_on, shut_down
from vmware.properties import fetch_one
from vmware.session import Session
from vmware.vm_spec import SpecChoices, UuidPolicy, first_spec, last_spec
from vmware.vm_spec_devices import MacPolicy

pytestmark = pytest.mark.integration

INSTANCE = "11111111-2222-4333-8444-555555555555"
MARK = Marker(
    appliance_id="appliance", run_id="run", purpose=Purpose.RESTORE, subject=INSTANCE
).text


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with vcsim("-vm", "2", "-host", "2") as running, running.connect() as connected:
        yield connected


@pytest.fixture(scope="module")
def captured(session: Session) -> CapturedVm:
    vm = find_vms(session, ["DC0_C0_RP0_VM0"])[0]
    return CapturedVm.parse(capture(session, vm.moref, None))


@pytest.fixture(scope="module")
def placement(session: Session, captured: CapturedVm) -> Placement:
    return choose_place(session, WantedPlace(), captured.placement, 1 << 20)


def made(session: Session, captured: CapturedVm, placement: Placement) -> tuple[str, SpecChoices]:
    choices = SpecChoices(
        name="again",
        home=f"[{placement.datastore.name}]",
        mark=MARK,
        instance_uuid=INSTANCE,
        hardware_most=newest_hardware(session, placement.host_moref),
        disk_keys=frozenset(disk.key for disk in captured.disks),
        networks=choose_networks(
            captured.nics, reachable_networks(session, placement.host_moref), {}
        ),
        mac=MacPolicy.NEW,
        uuid=UuidPolicy.NEW,
    )
    moref = create_vm(
        session,
        first_spec(captured, choices).spec,
        folder_moref=placement.folder_moref,
        pool_moref=placement.pool_moref,
        host_moref=placement.host_moref,
        patience=Patience(wait=lambda seconds: None),
    )
    return moref, choices


def test_a_vm_goes_where_it_was(captured: CapturedVm, placement: Placement) -> None:
    """Folder, host and datastore of the original are still there."""
    assert placement.folder_path == "DC0/vm" == captured.placement.folder_path
    assert placement.host_name == captured.placement.host
    assert placement.datastore.name == captured.placement.datastore
    assert placement.findings == ()


def test_a_place_that_does_not_exist_is_refused(session: Session, captured: CapturedVm) -> None:
    """Whatever part of it is wrong."""
    for wanted in (
        WantedPlace(folder_path="DC0/vm/none"),
        WantedPlace(folder_path="DC0/host"),
        WantedPlace(host="esx9"),
        WantedPlace(pool_path="DC0/host/DC0_C0/Resources/none"),
        WantedPlace(datastore="none"),
    ):
        with pytest.raises(PlacementError):
            choose_place(session, wanted, captured.placement, 0)


def test_hardware_versions_are_what_the_environment_offers(
    session: Session, placement: Placement
) -> None:
    """vcsim has an environment browser, as vCenter has."""
    assert 13 <= newest_hardware(session, placement.host_moref) < 40


def test_a_vm_is_made_marked_finished_and_powered(
    session: Session, captured: CapturedVm, placement: Placement
) -> None:
    """With the original's disks in their places and an adapter on its network."""
    moref, choices = made(session, captured, placement)
    vm = read_vm(session, moref)
    assert [disk.address for disk in vm.disks] == [
        disk.address for disk in find_vms(session, ["DC0_C0_RP0_VM0"])[0].disks
    ]
    assert vm.instance_uuid == INSTANCE == read_vm(session, moref).instance_uuid
    assert find_by_instance_uuid(session, INSTANCE) == moref
    target = session.object(vim.VirtualMachine, moref)
    paths = ("config.annotation", "config.hardware.device")
    read = fetch_one(session, "look", target, paths).values
    assert read["config.annotation"] == MARK
    cards = [
        one
        for one in read["config.hardware.device"]
        if isinstance(one, vim.vm.device.VirtualEthernetCard)
    ]
    assert len(cards) == len(captured.nics) == 1
    spec = last_spec(captured, choices, read["config.hardware.device"], None)
    finish_vm(session, moref, spec, MARK)
    read = fetch_one(session, "look", target, ("config.annotation",)).values
    assert captured.annotation == "", "which vcsim does not take for an annotation"
    assert read["config.annotation"] == PLAIN_ANNOTATION
    with pytest.raises(RefusedError):
        destroy_unfinished_vm(session, moref, MARK)
    power_on(session, moref, Origin.COPIED)
    calm = Patience(wait=lambda seconds: None)
    assert shut_down(session, moref, within_s=2, patience=calm) is not ShutDown.WAS_OFF
    assert shut_down(session, moref, within_s=2, patience=calm) is ShutDown.WAS_OFF
    unregister_vm(session, moref)
    assert find_vms(session, ["again"]) == []


def test_an_unfinished_vm_is_undone_and_no_other(
    session: Session, captured: CapturedVm, placement: Placement
) -> None:
    """The mark must be exactly ours; a second undoing changes nothing."""
    other = find_vms(session, ["DC0_C0_RP0_VM1"])[0]
    with pytest.raises(RefusedError):
        destroy_unfinished_vm(session, other.moref, MARK)
    moref, _ = made(session, captured, placement)
    with pytest.raises(RefusedError):
        destroy_unfinished_vm(session, moref, MARK.replace("run", "ran", 1))
    destroy_unfinished_vm(session, moref, MARK)
    destroy_unfinished_vm(session, moref, MARK)
    assert find_by_instance_uuid(session, INSTANCE) is None


def test_attributes_are_made_and_set(session: Session, captured: CapturedVm) -> None:
    """A tag that is not there is told."""
    vm = find_vms(session, ["DC0_C0_RP0_VM1"])[0]
    findings = give_labels(
        session,
        vm.moref,
        [CapturedAttribute(name="owner", value="ops")],
        [CapturedTag(category="tier", name="gold")],
    )
    assert [finding.code for finding in findings] == ["rebuild.label-lost"]
    read = capture(session, vm.moref, None)
    assert [(item["name"], item["value"]) for item in read["custom_attributes"]] == [
        ("owner", "ops")
    ]
