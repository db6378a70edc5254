"""The configuration of VMs of the practice vCenter: both dialects of REST, files, placement."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from pyVmomi import vim

from lab.data_plane.rest import RestForm
from lab.data_plane.tags import Cardinality, TaggedObject
from lab.faults import FaultName
from tests.support.lab_machines import Practice, added, disk, practice
from vmware.config_capture import capture
from vmware.inventory import find_vms
from vmware.rest import Dialect, RestSession
from vmware.session import Endpoint, Session
from vmware.tags import Tags

pytestmark = pytest.mark.integration


@pytest.fixture
def lab() -> Iterator[Practice]:
    with practice() as lab:
        yield lab


@pytest.fixture
def session(lab: Practice) -> Iterator[Session]:
    vcenter = lab.vcenter
    endpoint = Endpoint(
        address=vcenter.address,
        port=vcenter.port,
        user=vcenter.user,
        fingerprint_sha256=vcenter.fingerprint,
    )
    with Session.connect(endpoint, lambda: vcenter.password) as opened:
        yield opened


def tagged(lab: Practice, moref: str) -> None:
    tags = lab.plane.tags
    category = tags.create_category(
        "Tier",
        description="",
        cardinality=Cardinality.SINGLE,
        associable_types=frozenset({"VirtualMachine"}),
    )
    gold = tags.create_tag(category.id, "gold", description="nightly")
    tags.attach(gold.id, TaggedObject(type="VirtualMachine", id=moref))


@pytest.mark.parametrize("form", list(RestForm))
def test_tags_are_read_in_either_dialect(lab: Practice, session: Session, form: RestForm) -> None:
    """A server with one of the two is enough; the newer is taken where there is a choice."""
    lab.create("web", disk())
    (vm,) = find_vms(session, ["web"])
    tagged(lab, vm.moref)
    lab.plane.rest.forms = frozenset({form})
    with RestSession.connect(session) as rest:
        assert rest.dialect == Dialect(form.value)
        tags = Tags(rest)
        (tag,) = tags.of_vms([vm.moref])[vm.moref]
        assert (tag.category.name, tag.name, tag.description) == ("Tier", "gold", "nightly")
        assert tags.vms_with("Tier/gold") == [vm.moref]


def test_a_dropped_rest_session_is_replaced(lab: Practice, session: Session) -> None:
    """The login that REST has of its own is lost, and the question is answered all the same."""
    lab.create("web", disk())
    (vm,) = find_vms(session, ["web"])
    tagged(lab, vm.moref)
    with RestSession.connect(session) as rest:
        lab.faults.arm(FaultName.SESSION_DROP, method="rest")
        assert Tags(rest).vms_with("gold") == [vm.moref]


def test_the_document_holds_files_networks_and_tags_of_a_real_vm(
    lab: Practice, session: Session
) -> None:
    """Everything but storage policies is there; .vmx and NVRAM are the datastore's bytes."""
    switch = lab.inventory.portgroup
    card = vim.vm.device.VirtualVmxnet3(
        key=-20,
        backing=vim.vm.device.VirtualEthernetCard.DistributedVirtualPortBackingInfo(
            port=vim.dvs.PortConnection(portgroupKey=switch.moid, switchUuid=switch.switch.uuid)
        ),
    )
    lab.create("web", disk(), added(card), firmware="efi")
    (vm,) = find_vms(session, ["web"])
    tagged(lab, vm.moref)
    document = capture(session, vm.moref, None)
    assert [item["part"] for item in document["not_captured"]] == ["storage_policies"]
    vmx = base64.b64decode(document["files"]["vmx"]["base64"])
    assert vmx == (lab.folder / "ds1" / "web" / "web.vmx").read_bytes()
    assert [tag["name"] for tag in document["tags"]] == ["gold"]
    (nic,) = document["nics"]
    assert nic["network_name"] == "DC0_DVPG0"
    assert nic["network"]["switch_name"] == "DC0_DVS"
    assert document["placement"]["cluster"] == "DC0_C0"
    assert document["placement"]["datastores"][0]["kind"] == "VMFS"
