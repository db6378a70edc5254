# Script: checkpoint_disks
# The frozen files of a checkpoint: what its disks read from, leaf first, and its configuration.
# Parameters: {"checkpoint_id": InstanceID}
# Value: {checkpoint_id, vm_id: guid, name, kind: "recovery" | "other",
#   configuration: [path] (.vmcx and its .vmrs, .vmgs, as far as they exist),
#   disks: [{attachment: InstanceID of the storage setting, virtual_disk_id: guid,
#     controller: "ide" | "scsi" | "", controller_number: int, location: int, chain: [{path, format,
#     type, virtual_disk_id, size_bytes, file_size_bytes, logical_sector_bytes,
#     physical_sector_bytes, parent_path, error}]}]}
#   chain[0] is the file that is frozen; attachment ends in `<controller>\<n>\<lun>\D`.
# Errors: checkpoint-not-found
# Classes: Msvm_VirtualSystemSettingData, Msvm_StorageAllocationSettingData,
#   Msvm_ResourceAllocationSettingData
# Minimum: Windows Server 2016
$settings = Get-ByInstanceId Msvm_VirtualSystemSettingData $parameters.checkpoint_id 'checkpoint-not-found'
$kind = 'other'
if ([string]$settings.VirtualSystemType -eq 'Microsoft:Hyper-V:Snapshot:Recovery') { $kind = 'recovery' }
$resources = @{}
foreach ($resource in @(Get-CimAssociatedInstance -InputObject $settings -ResultClassName Msvm_ResourceAllocationSettingData)) {
    $resources[[string]$resource.InstanceID] = $resource
}
$configuration = @()
if ($settings.ConfigurationDataRoot -and $settings.ConfigurationFile) {
    $main = Join-Path ([string]$settings.ConfigurationDataRoot) ([string]$settings.ConfigurationFile)
    $configuration = @(foreach ($ending in '.vmcx', '.vmrs', '.vmgs') {
        $path = [IO.Path]::ChangeExtension($main, $ending)
        if (Test-Path -LiteralPath $path) { $path }
    })
}
$disks = @(foreach ($disk in @(Get-StorageAllocation $settings)) {
    $chain = @(Get-DiskChain ([string]@($disk.HostResource)[0]))
    $controller = ''
    $number = 0
    $location = 0
    $drive = $resources.Values | Where-Object { $disk.Parent -and ([string]$disk.Parent).Contains($_.InstanceID.Replace('\', '\\')) } |
        Select-Object -First 1
    if ($drive) {
        $location = [int]$drive.AddressOnParent
        $holder = $resources.Values | Where-Object { $drive.Parent -and ([string]$drive.Parent).Contains($_.InstanceID.Replace('\', '\\')) } |
            Select-Object -First 1
        if ($holder) {
            $controller = 'scsi'
            if ([int]$holder.ResourceType -eq 5) { $controller = 'ide' }
            $number = [int]$holder.Address
        }
    }
    [pscustomobject]@{
        attachment = [string]$disk.InstanceID
        virtual_disk_id = [string]$chain[0].virtual_disk_id
        controller = $controller
        controller_number = $number
        location = $location
        chain = $chain
    }
})
[pscustomobject]@{
    checkpoint_id = [string]$settings.InstanceID
    vm_id = ([string]$settings.VirtualSystemIdentifier).ToLowerInvariant()
    name = [string]$settings.ElementName
    kind = $kind
    configuration = $configuration
    disks = $disks
}
