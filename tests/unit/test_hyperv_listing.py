"""What `vm list` says of the VMs of a Hyper-V host."""

from __future__ import annotations

import pytest

from appliance.sources.hyperv_listing import vm_obstacles
from hyperv.marker import Marker, Purpose
from hyperv.script_types import HostFacts, Vm
from tests.support.hyperv_world import APPLIANCE

FACTS = HostFacts.model_construct(reference_points=True, diskshadow=True)
MARK = Marker(appliance_id=APPLIANCE, run_id="instant-0a1b2c3d", purpose=Purpose.RESTORE).text


@pytest.mark.parametrize(
    ("name", "notes", "codes"),
    [
        ("holdfast-verify-0a1b2c3d", MARK, ["vm.of-verification"]),
        ("holdfast-verify-0a1b2c3d", "a VM of somebody's", ["vm.no-disks"]),
        ("web", MARK, ["vm.no-disks"]),
    ],
)
def test_a_point_under_verification_is_not_backed_up(
    name: str, notes: str, codes: list[str]
) -> None:
    """Known by its name and by the mark of its session, never by one alone."""
    vm = Vm.model_construct(
        name=name, notes=notes, version="10.0", state=2, replication_mode=0, disks=[]
    )
    assert [reason.code for reason in vm_obstacles(FACTS, vm)] == codes
