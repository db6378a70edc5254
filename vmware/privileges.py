"""The privileges that the service account needs, by purpose, and which of them are missing.

One list for everybody: what `host test` reports and what the manual prints. Grant them to a role at
the vCenter's root folder with propagation, which is where `missing_privileges` looks (and at
whatever entity it is told).
Source: design notes section 7; vSphere API reference, AuthorizationManager.HasPrivilegeOnEntities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from vmware.errors import ProtocolError
from vmware.session import Session


class Purpose(StrEnum):
    """What privileges are for; a site grants only the purposes it uses."""

    INVENTORY = "inventory"
    SNAPSHOT = "snapshot"
    READ_DISKS = "read disks"
    HOT_ADD = "hot-add"
    RESTORE = "restore"
    INSTANT_RECOVERY = "instant recovery"
    CONTROL = "power and guests"
    TAGS = "tags and attributes"
    ENCRYPTED = "encrypted VMs"


#: What a backup needs, whatever its transport.
BACKUP = (Purpose.INVENTORY, Purpose.SNAPSHOT, Purpose.READ_DISKS)

PRIVILEGES: dict[Purpose, tuple[str, ...]] = {
    Purpose.INVENTORY: (
        "System.Anonymous",
        "System.View",
        "System.Read",
        "Sessions.ValidateSession",
        "StorageProfile.View",
        "Global.CancelTask",
    ),
    Purpose.SNAPSHOT: (
        "VirtualMachine.State.CreateSnapshot",
        "VirtualMachine.State.RemoveSnapshot",
        "VirtualMachine.Config.ChangeTracking",
    ),
    Purpose.READ_DISKS: (
        "VirtualMachine.Provisioning.DiskRandomRead",
        "VirtualMachine.Provisioning.GetVmFiles",
        "VirtualMachine.Config.DiskLease",
        "VApp.Export",
        "Datastore.Browse",
        "Datastore.FileManagement",
    ),
    Purpose.HOT_ADD: (
        "VirtualMachine.Config.AddExistingDisk",
        "VirtualMachine.Config.RemoveDisk",
        "VirtualMachine.Config.AddRemoveDevice",
        "VirtualMachine.Config.EditDevice",
        "VirtualMachine.Config.Resource",
        "VirtualMachine.Config.Settings",
        "Datastore.AllocateSpace",
    ),
    Purpose.RESTORE: (
        "VirtualMachine.Inventory.Create",
        "VirtualMachine.Inventory.Register",
        "VirtualMachine.Inventory.Unregister",
        "VirtualMachine.Inventory.Delete",
        "VirtualMachine.Config.AddNewDisk",
        "VirtualMachine.Config.CPUCount",
        "VirtualMachine.Config.Memory",
        "VirtualMachine.Config.AdvancedConfig",
        "VirtualMachine.Config.Annotation",
        "VirtualMachine.Config.Rename",
        "VirtualMachine.Config.SwapPlacement",
        "VirtualMachine.Config.DiskExtend",
        "VirtualMachine.Config.RawDevice",
        "VirtualMachine.Config.UpgradeVirtualHardware",
        "VirtualMachine.Provisioning.DiskRandomAccess",
        "VirtualMachine.Provisioning.PutVmFiles",
        "VirtualMachine.Provisioning.MarkAsTemplate",
        "VApp.Import",
        "VApp.ApplicationConfig",
        "Resource.AssignVMToPool",
        "Network.Assign",
        "Folder.Create",
        "StorageProfile.Update",
    ),
    Purpose.INSTANT_RECOVERY: (
        "Host.Config.Storage",
        "Host.Config.Network",
        "VirtualMachine.Config.EditDevice",
        "VirtualMachine.Config.Settings",
        "VirtualMachine.Config.Resource",
        "Datastore.AllocateSpace",
        "DVPortgroup.Create",
        "DVPortgroup.Delete",
        "DVPortgroup.Modify",
        "Resource.HotMigrate",
        "Resource.ColdMigrate",
        "Datastore.Delete",
    ),
    Purpose.CONTROL: (
        "VirtualMachine.Interact.PowerOn",
        "VirtualMachine.Interact.PowerOff",
        "VirtualMachine.Interact.Reset",
        "VirtualMachine.Interact.AnswerQuestion",
        "VirtualMachine.Interact.DeviceConnection",
        "VirtualMachine.Interact.SetCDMedia",
        "VirtualMachine.Interact.CreateScreenshot",
        "VirtualMachine.Interact.ConsoleInteract",
        "VirtualMachine.GuestOperations.Query",
        "VirtualMachine.GuestOperations.Modify",
        "VirtualMachine.GuestOperations.Execute",
        "VirtualMachine.State.RevertToSnapshot",
    ),
    Purpose.TAGS: (
        "InventoryService.Tagging.AttachTag",
        "InventoryService.Tagging.ObjectAttachable",
        "InventoryService.Tagging.CreateTag",
        "InventoryService.Tagging.CreateCategory",
        "Global.ManageCustomFields",
        "Global.SetCustomField",
    ),
    Purpose.ENCRYPTED: (
        "Cryptographer.Access",
        "Cryptographer.AddDisk",
        "Cryptographer.RegisterVM",
        "Cryptographer.Encrypt",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A privilege that the account lacks on an entity."""

    privilege: str
    purpose: Purpose
    entity: str  # id of the managed object


def missing_privileges(
    session: Session, purposes: Sequence[Purpose], entities: Sequence[Any] = ()
) -> list[Missing]:
    """What the logged-in account lacks, in the order of the tables.

    Privileges that this server does not know (older or newer than the table) are passed over.

    Args:
        entities: managed objects to look at; default: the root folder.

    Raises:
        VsphereError: the question itself failed.
    """
    what = "ask for missing privileges"
    manager = session.content.authorizationManager
    known = {item.privId for item in session.read(what, lambda: manager.privilegeList) or ()}
    wanted = [
        (purpose, privilege)
        for purpose in purposes
        for privilege in PRIVILEGES[purpose]
        if not known or privilege in known
    ]
    asked = sorted({privilege for _, privilege in wanted})
    targets = list(entities) or [session.content.rootFolder]
    held: dict[str, set[str]] = {}
    for answer in session.read(what, _ask, session, targets, asked):
        granted = {item.privId for item in answer.privAvailability if item.isGranted}
        held[answer.entity._GetMoId()] = granted
    morefs = [target._GetMoId() for target in targets]
    if not set(morefs) <= set(held):
        raise ProtocolError(f"{what}: the server left entities out")
    return [
        Missing(privilege=privilege, purpose=purpose, entity=moref)
        for moref in morefs
        for purpose, privilege in wanted
        if privilege not in held[moref]
    ]


def _ask(session: Session, targets: Sequence[Any], privileges: Sequence[str]) -> list[Any]:
    manager = session.content.authorizationManager
    key = session.content.sessionManager.currentSession.key  # inside: another one after a re-login
    return list(manager.HasPrivilegeOnEntities(list(targets), key, list(privileges)) or ())
