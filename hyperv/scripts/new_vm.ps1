# Script: new_vm
# Makes a VM from a specification, without disks, powered off, its adapters not connected unless
# a switch is named. Its notes are the marker until they are changed.
# Parameters: {"marker": string, "name": string, "folder": path, "generation": 1 | 2,
#   "version": "" (the host's own) | "8.0", "processors": int, "nested": bool,
#   "memory": {"startup_bytes", "minimum_bytes", "maximum_bytes": int, "dynamic": bool},
#   "secure_boot": bool, "secure_boot_template": string ("" with generation 1), "tpm": bool,
#   "scsi_controllers": int (1 to 4),
#   "adapters": [{"name": string, "switch_name": string ("": not connected), "mac": 12 hex digits
#     or "" for one of the host's choice, "legacy": bool, "vlan_id": int (0: untagged)}],
#   "identity": null | {"bios_guid", "bios_serial", "board_serial", "chassis_serial",
#     "chassis_asset_tag": string ("": leave)}}
# Value: {id: guid}
# Errors: bad-marker, switch-not-found, wmi-method. What was made so far is removed again.
# Classes: Msvm_VirtualSystemSettingData, Msvm_VirtualSystemManagementService.ModifySystemSettings
# Minimum: Windows Server 2012 R2 (nested, version: 2016)
Get-MarkedFolder 'vms' $parameters.marker | Out-Null
foreach ($adapter in @($parameters.adapters)) {
    if ($adapter.switch_name) {
        $switch = Get-VMSwitch | Where-Object { $_.Name -eq [string]$adapter.switch_name } | Select-Object -First 1
        if (-not $switch) { Stop-Script 'switch-not-found' ([string]$adapter.switch_name) }
    }
}
$making = @{
    Name = [string]$parameters.name
    Path = [string]$parameters.folder
    Generation = [int]$parameters.generation
    MemoryStartupBytes = [long]$parameters.memory.startup_bytes
    NoVHD = $true
}
if ($parameters.version) { $making['Version'] = [version][string]$parameters.version }
$vm = New-VM @making
try {
    $stays = @{ VM = $vm; Notes = [string]$parameters.marker; AutomaticStartAction = 'Nothing' }
    $can = (Get-Command -Name Set-VM).Parameters
    if ($can.ContainsKey('AutomaticCheckpointsEnabled')) { $stays['AutomaticCheckpointsEnabled'] = $false }
    Set-VM @stays
    Set-VMProcessor -VM $vm -Count ([int]$parameters.processors)
    if ($parameters.nested) { Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions $true }
    if ($parameters.memory.dynamic) {
        Set-VMMemory -VM $vm -DynamicMemoryEnabled $true -MinimumBytes ([long]$parameters.memory.minimum_bytes) -MaximumBytes ([long]$parameters.memory.maximum_bytes)
    } else {
        Set-VMMemory -VM $vm -DynamicMemoryEnabled $false
    }
    while (@(Get-VMScsiController -VM $vm).Count -lt [int]$parameters.scsi_controllers) {
        Add-VMScsiController -VM $vm
    }
    Get-VMNetworkAdapter -VM $vm | Remove-VMNetworkAdapter
    foreach ($adapter in @($parameters.adapters)) {
        $adding = @{ VM = $vm; Name = [string]$adapter.name; Passthru = $true }
        if ($adapter.mac) { $adding['StaticMacAddress'] = [string]$adapter.mac }
        if ($adapter.legacy) { $adding['IsLegacy'] = $true }
        $added = Add-VMNetworkAdapter @adding
        if ([int]$adapter.vlan_id -gt 0) {
            Set-VMNetworkAdapterVlan -VMNetworkAdapter $added -Access -VlanId ([int]$adapter.vlan_id)
        }
        if ($adapter.switch_name) {
            Connect-VMNetworkAdapter -VMNetworkAdapter $added -SwitchName ([string]$adapter.switch_name)
        }
    }
    if ([int]$parameters.generation -eq 2) {
        Set-SecureBoot $vm $parameters.secure_boot $parameters.secure_boot_template
        if ($parameters.tpm) {
            Set-VMKeyProtector -VM $vm -NewLocalKeyProtector
            Enable-VMTPM -VM $vm
        }
    }
    if ($parameters.identity) {
        $system = Get-ComputerSystem ([string]$vm.Id)
        $settings = Get-CimAssociatedInstance -InputObject $system -Association Msvm_SettingsDefineState -ResultClassName Msvm_VirtualSystemSettingData |
            Select-Object -First 1
        if ($parameters.identity.bios_guid) { Set-InstanceProperty $settings 'BIOSGUID' ([string]$parameters.identity.bios_guid) }
        if ($parameters.identity.bios_serial) { Set-InstanceProperty $settings 'BIOSSerialNumber' ([string]$parameters.identity.bios_serial) }
        if ($parameters.identity.board_serial) { Set-InstanceProperty $settings 'BaseBoardSerialNumber' ([string]$parameters.identity.board_serial) }
        if ($parameters.identity.chassis_serial) { Set-InstanceProperty $settings 'ChassisSerialNumber' ([string]$parameters.identity.chassis_serial) }
        if ($parameters.identity.chassis_asset_tag) { Set-InstanceProperty $settings 'ChassisAssetTag' ([string]$parameters.identity.chassis_asset_tag) }
        $service = Get-HyperVService Msvm_VirtualSystemManagementService
        Start-Method $service ModifySystemSettings @{ SystemSettings = Get-EmbeddedText $settings } | Out-Null
    }
} catch {
    $failure = $_.Exception
    Remove-VM -VM $vm -Force
    throw $failure
}
[pscustomobject]@{ id = ([string]$vm.Id).ToLowerInvariant() }
