"""The scripts that make and remove private switches.

Thread model: as `script_call`.
"""

from __future__ import annotations

from functools import partial

from lab.hyperv_host.errors import NotFoundError
from lab.hyperv_host.host import HypervHost, Switch
from lab.hyperv_host.script_call import Document, Parameters, Script, ScriptStop
from lab.hyperv_host.scripts_machine import checked_marker

_PRIVATE = "private"


def switch_scripts(host: HypervHost) -> dict[str, Script]:
    ours = frozenset({"marker", "name"})
    return {
        "make_switch": Script(partial(_make_switch, host), ours),
        "remove_switch": Script(partial(_remove_switch, host), ours),
    }


def _make_switch(host: HypervHost, given: Parameters) -> Document:
    marker, name = checked_marker(given), given.text("name")
    try:
        switch = host.switch(name)
    except NotFoundError:
        switch = host.add_private_switch(name, marker)
    if not _is_marked(switch, marker):
        raise ScriptStop("not-ours", switch.name)
    return {"id": switch.switch_id}


def _remove_switch(host: HypervHost, given: Parameters) -> Document:
    marker = checked_marker(given)
    try:
        switch = host.switch(given.text("name"))
    except NotFoundError:
        return {"found": False, "used_by": []}
    if not _is_marked(switch, marker):
        return {"found": False, "used_by": []}
    used_by = [vm.settings.name for vm in host.vms_on(switch)]
    if not used_by:
        host.remove_switch(switch)
    return {"found": True, "used_by": used_by}


def _is_marked(switch: Switch, marker: str) -> bool:
    return switch.kind == _PRIVATE and switch.notes == marker
