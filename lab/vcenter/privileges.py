"""The privilege ids this vCenter knows: those that its methods require and its clients ask for.

Source: the privilege column of pyVmomi's type table, and "Defined Privileges" of the vSphere
Security guide. An id that is not here is one that nobody has, as in a real vCenter.
"""

from __future__ import annotations

SYSTEM_PRIVILEGES = frozenset({"System.Anonymous", "System.View", "System.Read"})

_BY_GROUP = {
    "Alarm": "Acknowledge Create Delete DisableActions Edit SetStatus",
    "Authorization": "ModifyPermissions ModifyRoles ReassignRolePermissions ModifyPrivileges",
    "Cryptographer": "Access AddDisk Clone Decrypt Encrypt EncryptNew RegisterVM RegisterHost",
    "DVPortgroup": "Create Delete Modify PolicyOp ScopeOp",
    "DVSwitch": "Create Delete Modify Move HostOp",
    "Datacenter": "Create Delete Move Reconfigure Rename",
    "Datastore": "AllocateSpace Browse Config Delete DeleteFile FileManagement Move Rename "
    "UpdateVirtualMachineFiles UpdateVirtualMachineMetadata",
    "Extension": "Register Unregister Update",
    "Folder": "Create Delete Move Rename",
    "Global": "CancelTask CapacityPlanning Diagnostics DisableMethods EnableMethods GlobalTag "
    "Health Licenses LogEvent ManageCustomFields Proxy ScriptAction ServiceManagers SetCustomField "
    "Settings SystemTag VCServer",
    "Host.Cim": "CimInteraction",
    "Host.Config": "AdvancedConfig AuthenticationStore AutoStart Connection DateTime Firmware "
    "HyperThreading Image Maintenance Memory NetService Network Nvdimm Patch PciPassthru Power "
    "ProductLocker Quarantine Resources Settings Snmp Storage SystemManagement",
    "Host.Inventory": "AddHostToCluster AddStandaloneHost CreateCluster DeleteCluster EditCluster "
    "MoveCluster MoveHost RemoveHostFromCluster RenameCluster",
    "InventoryService.Tagging": "AttachTag CreateCategory CreateTag DeleteCategory DeleteTag "
    "EditCategory EditTag ModifyUsedByForCategory ModifyUsedByForTag ObjectAttachable",
    "Network": "Assign Config Delete Move",
    "Performance": "ModifyIntervals",
    "Resource": "ApplyRecommendation AssignVAppToPool AssignVMToPool ColdMigrate CreatePool "
    "DeletePool EditPool HotMigrate MovePool QueryVMotion RenamePool",
    "ScheduledTask": "Create Delete Edit Run",
    "Sessions": "GlobalMessage ImpersonateUser TerminateSession ValidateSession",
    "StorageProfile": "Apply Update View",
    "Task": "Create Update",
    "VApp": "ApplicationConfig AssignResourcePool AssignVApp AssignVM Clone Create Delete Export "
    "ExtractOvfEnvironment Import InstanceConfig ManagedByConfig Move PowerOff PowerOn Rename "
    "ResourceConfig Suspend Unregister",
    "VirtualMachine.Config": "AddExistingDisk AddNewDisk AddRemoveDevice AdvancedConfig Annotation "
    "CPUCount ChangeTracking DiskExtend DiskLease EditDevice HostUSBDevice ManagedBy Memory "
    "MksControl QueryFTCompatibility QueryUnownedFiles RawDevice ReloadFromPath RemoveDisk Rename "
    "ResetGuestInfo Resource Settings SwapPlacement ToggleForkParent UpgradeVirtualHardware",
    "VirtualMachine.GuestOperations": "Execute Modify ModifyAliases Query QueryAliases",
    "VirtualMachine.Interact": "AnswerQuestion Backup ConsoleInteract CreateScreenshot "
    "CreateSecondary DefragmentAllDisks DeviceConnection DisableSecondary DnD EnableSecondary "
    "GuestControl MakePrimary Pause PowerOff PowerOn PutUsbScanCodes Record Replay Reset "
    "SESparseMaintenance SetCDMedia SetFloppyMedia Suspend TerminateFaultTolerantVM ToolsInstall "
    "TurnOffFaultTolerance",
    "VirtualMachine.Inventory": "Create CreateFromExisting Delete Move Register Unregister",
    "VirtualMachine.Provisioning": "Clone CloneTemplate CreateTemplateFromVM Customize "
    "DeployTemplate DiskRandomAccess DiskRandomRead FileRandomAccess GetVmFiles "
    "MarkAsTemplate MarkAsVM ModifyCustSpecs PromoteDisks PutVmFiles ReadCustSpecs",
    "VirtualMachine.State": "CreateSnapshot RemoveSnapshot RenameSnapshot RevertToSnapshot",
}

ALL_PRIVILEGES: tuple[str, ...] = (
    *sorted(SYSTEM_PRIVILEGES),
    *(f"{group}.{name}" for group, names in sorted(_BY_GROUP.items()) for name in names.split()),
)
