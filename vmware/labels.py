"""Custom attributes and tags of a VM that was built again: given by name, missing ones told.

Neither is worth failing a restore for, so everything here ends in findings.
Thread model: functions; they block.
Source: design notes section 1; vSphere API reference, CustomFieldsManager; `cis/tagging`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyVmomi import vim

from vmware.captured_vm import CapturedAttribute, CapturedTag
from vmware.errors import VsphereError
from vmware.findings import Finding
from vmware.properties import fetch_one
from vmware.rest import RestSession
from vmware.session import Session
from vmware.tags import Tags


def give_labels(
    session: Session,
    vm_moref: str,
    attributes: Sequence[CapturedAttribute],
    tags: Sequence[CapturedTag],
) -> tuple[Finding, ...]:
    """Set the attributes and attach the tags; what could not be is returned. Never raises."""
    return (*_give_attributes(session, vm_moref, attributes), *_give_tags(session, vm_moref, tags))


def _give_attributes(
    session: Session, vm_moref: str, attributes: Sequence[CapturedAttribute]
) -> list[Finding]:
    manager = session.content.customFieldsManager
    if not attributes:
        return []
    if manager is None:
        return [_lost("attributes", "an ESXi host by itself has none")]
    found = []
    vm = session.object(vim.VirtualMachine, vm_moref)
    for attribute in attributes:
        what = f"set the attribute {attribute.name}"
        try:
            fields = fetch_one(session, what, manager, ("field",)).values.get("field") or ()
            keys = [
                field.key
                for field in fields
                if field.name == attribute.name
                and field.managedObjectType in (None, vim.VirtualMachine)
            ]
            if not keys:
                kind = vim.VirtualMachine
                keys = [session.call(what, manager.AddCustomFieldDef, attribute.name, kind).key]
            session.call(what, manager.SetField, vm, keys[0], attribute.value)
        except VsphereError as error:
            found.append(_lost(f"attribute {attribute.name}", str(error)))
    return found


def _give_tags(session: Session, vm_moref: str, tags: Sequence[CapturedTag]) -> list[Finding]:
    if not tags:
        return []
    found = []
    try:
        with RestSession.connect(session) as rest:
            known = Tags(rest)
            for tag in tags:
                name = f"{tag.category}/{tag.name}"
                try:
                    if not known.attach(vm_moref, tag.category, tag.name):
                        found.append(_lost(f"tag {name}", "there is no such tag"))
                except VsphereError as error:
                    found.append(_lost(f"tag {name}", str(error)))
    except VsphereError as error:
        found.append(_lost("tags", str(error)))
    return found


def _lost(what: str, why: str) -> Finding:
    return Finding(
        "rebuild.label-lost", f"{what} not restored: {why}", "give it to the VM again by hand"
    )
