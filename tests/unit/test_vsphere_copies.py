"""A VM and a copy that kept its uuids are two VMs, on hosts that let both be."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from appliance.jobs.vm_selection import select_vms
from appliance.sources import vsphere, vsphere_listing
from appliance.sources.vm_identity import PointNames
from appliance.sources.vsphere import VsphereSource
from tests.support.inventories import a_disk, a_vm

WEB = a_vm(moref="1", name="web", instance_uuid="5000", disks=(a_disk(),))
COPY = replace(WEB, moref="2", name="web-copy")
OTHER = replace(WEB, moref="3", name="db", instance_uuid="5001")
HOST: Any = SimpleNamespace(name="esx1", session=None, about=SimpleNamespace(server_id="esx1:443"))


@pytest.fixture(autouse=True)
def inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsphere, "list_vms", lambda session: [WEB, COPY, OTHER])
    monkeypatch.setattr(vsphere_listing, "read_inventory", lambda session: [WEB, COPY, OTHER])


def test_a_copy_with_the_originals_instance_uuid_has_points_of_its_own() -> None:
    """An ESXi host by itself lets a copied VM keep it. Taken for one VM, each would be backed up
    over the other's recovery point."""
    source = VsphereSource(HOST, cast(Any, None), cast(Any, None), "ours")
    selected = select_vms([source], ["*"], (), PointNames([])).vms
    assert len({one.vm.identity.key for one in selected}) == 3
    assert len({one.point_name for one in selected}) == 3


def test_both_lists_of_a_host_tell_vms_alike() -> None:
    """What is shown and what is backed up are matched by identity."""
    source = VsphereSource(HOST, cast(Any, None), cast(Any, None), "ours")
    backed_up = {vm.key: vm.identity for vm in source.list_vms()}
    assert {vm.moref: vm.identity for vm in vsphere_listing.list_vms(HOST)} == backed_up
    assert backed_up["3"].instance_uuid == "5001"
