# Script: checkpoint_disks
# The frozen files of a checkpoint: what its disks read from, leaf first, and its configuration.
# Parameters: {"checkpoint_id": InstanceID}
# Value: {checkpoint_id, vm_id: guid, name, kind: "recovery" | "other",
#   configuration: [path] (.vmcx and its .vmrs, .vmgs, as far as they exist),
#   disks: [{attachment: InstanceID of the storage setting, virtual_disk_id: guid,
#     controller: "ide" | "scsi" | "", controller_number: int, location: int, chain: [{path, format,
#     type, virtual_disk_id, size_bytes, file_size_bytes, logical_sector_bytes,
#     physical_sector_bytes, parent_path, error}]}]}
#   chain[0] is the file that is frozen; attachment is `Microsoft:<checkpoint>\<controller>\<n>\<lun>\L`
#   (or \D). controller "": the VM has no such drive any more.
# Errors: checkpoint-not-found, vm-not-found
# Classes: Msvm_VirtualSystemSettingData, Msvm_StorageAllocationSettingData; cmdlet Get-VMHardDiskDrive
# Minimum: Windows Server 2016
$settings = Get-ByInstanceId Msvm_VirtualSystemSettingData $parameters.checkpoint_id 'checkpoint-not-found'
$kind = 'other'
if ([string]$settings.VirtualSystemType -eq 'Microsoft:Hyper-V:Snapshot:Recovery') { $kind = 'recovery' }
# Drives of the VM by controller, number and unit: the ids of a checkpoint differ in the VM part only.
$drives = @{}
foreach ($drive in @(Get-VMHardDiskDrive -VM (Get-TheVm ([string]$settings.VirtualSystemIdentifier)))) {
    $drives[(([string]$drive.Id).Split('\')[1..3] -join '\')] = $drive
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
    $drive = $drives[(([string]$disk.InstanceID).Split('\')[1..3] -join '\')]
    if ($drive) {
        $controller = ([string]$drive.ControllerType).ToLowerInvariant()
        $number = [int]$drive.ControllerNumber
        $location = [int]$drive.ControllerLocation
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
