"""Recovery points become VMs again in the practice vCenter: new ones, and the one they are of."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.support.needs import needs
from tests.support.restoring import (
    Restoring,
    appliance_tools,
    disk_content,
    left_overs,
    machine_named,
    restoring,
)
from tests.support.vm_lab import VmLab, backing_up, vm_lab

pytestmark = pytest.mark.integration

MIB = 1 << 20
WAYS = ["hot-add", "nfc-lease"]


@pytest.fixture(scope="module")
def lab() -> Iterator[VmLab]:
    needs("qemu-system-x86_64", "qemu-img", "qemu-storage-daemon", "losetup")
    with vm_lab() as running:
        yield running


@pytest.fixture(scope="module")
def here(lab: VmLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Restoring]:
    """With an appliance that can take disks, and a point of a VM with two disks."""
    tools = appliance_tools(lab, tmp_path_factory.mktemp("appliance") / "root")
    image = tmp_path_factory.mktemp("images") / "disk.raw"
    noise = random.Random(5)
    image.write_bytes(
        noise.randbytes(3 * MIB) + bytes(9 * MIB) + noise.randbytes(MIB) + bytes(3 * MIB)
    )
    lab.add_machine("cold", image, extra_disks_bytes=(2 * MIB,))
    with backing_up(lab, tools) as backup:
        (result,) = backup.back_up("cold")
        assert result.backup is not None, result.error
    with restoring(lab, tools) as opened:
        yield opened


@pytest.mark.parametrize("way", WAYS)
def test_a_new_vm_has_the_points_disks_and_configuration(
    here: Restoring, lab: VmLab, way: str
) -> None:
    """Both ways of writing; nothing but the VM is new, and it carries no mark of ours."""
    before = left_overs(lab, here.catalog)
    point = here.point("cold")
    name = f"again-{way}"
    result = here.restore(point, name=name, transports=(way,))
    assert result.transport == way
    assert [disk.number for disk in result.disks] == [0, 1]
    assert disk_content(lab, name, 0) == here.content(point, 0)
    assert disk_content(lab, name, 1) == here.content(point, 1)
    old, new = machine_named(lab, "cold").engine.config, machine_named(lab, name).engine.config
    assert new.annotation == old.annotation
    assert (new.cpus, new.memory_mib, new.guest_id, new.firmware) == (
        old.cpus, old.memory_mib, old.guest_id, old.firmware
    )  # fmt: skip
    assert [(d.controller_key, d.unit) for d in new.disks] == [
        (d.controller_key, d.unit) for d in old.disks
    ]
    assert [(n.kind, n.network) for n in new.nics] == [(n.kind, n.network) for n in old.nics]
    assert {n.mac for n in new.nics} & {n.mac for n in old.nics} == set(), "the original is there"
    assert new.instance_uuid != old.instance_uuid and new.uuid != old.uuid
    after = left_overs(lab, here.catalog)
    assert set(after["vms"]) - set(before["vms"]) == {name}
    assert after["leases"] == after["intents"] == 0
    assert after["disks"]["appliance"] == before["disks"]["appliance"]
