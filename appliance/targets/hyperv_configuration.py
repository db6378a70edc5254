"""The configuration of a Hyper-V VM set back to that of a recovery point, after its disks were.

Adapters are told apart by their id, else by name; those that came since are left as they are.
Thread model: a function; it blocks. Errors are those of `hyperv/`, which the caller translates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from appliance.base.reasons import Reason
from appliance.targets.hyperv_plan import boot_disk, planned_adapters
from appliance.targets.point_hardware import capture_of
from hyperv.config_capture import capture_vm
from hyperv.host_session import HostSession
from hyperv.new_vm import list_switches
from hyperv.patience import Patience
from hyperv.vm_configuration import DiskPlace, configure_vm


def roll_back(
    session: HostSession, key: str, hardware: Mapping[str, Any], networks: Mapping[str, str]
) -> tuple[Reason, ...]:
    """Raises: ForeignPointError, NoSuchPlaceError: nothing was changed; HypervErrors."""
    capture, patience = capture_of(hardware), Patience()
    now = capture_vm(session, key, patience)
    here = {adapter.id: adapter for adapter in now.adapters}
    pairs = []
    for adapter in capture.vm.adapters:
        found = here.get(adapter.id) or next(
            (one for one in now.adapters if one.name == adapter.name), None
        )
        if found is not None:
            pairs.append((found.id, adapter))
    planned = planned_adapters(
        [adapter for _, adapter in pairs],
        list_switches(session, patience),
        networks,
        frozenset(),
        keep_mac=True,
    )
    first = boot_disk(capture.vm, capture.disks) if capture.vm.firmware else None
    configure_vm(
        session,
        key,
        capture.vm,
        boot_disk=None
        if first is None
        else DiskPlace(
            controller=first.controller,
            controller_number=first.controller_number,
            location=first.location,
        ),
        switches={id: adapter.switch_name for (id, _), adapter in zip(pairs, planned, strict=True)},
        patience=patience,
    )
    return () if len(pairs) == len(capture.vm.adapters) else (_ADAPTER_GONE,)


_ADAPTER_GONE = Reason(
    "restore.adapter-gone",
    "the VM lacks a network adapter that it had when it was backed up",
    "add it on the host if the guest needs it",
)
