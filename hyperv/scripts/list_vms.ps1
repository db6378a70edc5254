# Script: list_vms
# The VMs that this host runs or owns, with their disks as the VM writes to them now.
# Parameters: {"vm_id": guid string, or "" for all}
# Value: {vms: [{id: guid, name, state: int (VMState), generation: int, version: "10.0",
#   clustered: bool, operational_status: [int], processors: int, memory_bytes: int, folder: string,
#   checkpoint_type: int, parent_checkpoint: string, replication_mode: int, tpm: bool,
#   shielded: bool, vss_status: int (OperationalStatus[0] of the VSS integration component,
#   0: disabled or absent), fibre_channel: int (adapters), notes: string,
#   disks: [{attachment: string, controller: "ide" | "scsi" | "pmem", controller_number: int,
#     location: int, pass_through: bool, shared: bool, path, format, type, virtual_disk_id: string,
#     size_bytes, file_size_bytes, logical_sector_bytes, physical_sector_bytes: int,
#     parent_path: string, error: string}]}]}
#   format: "vhd" | "vhdx" | "vhdset", type: "fixed" | "dynamic" | "differencing"; of a file that
#   cannot be looked into: "", 0 and an `error`. attachment: `Microsoft:<vm>\<controller>\<n>\<lun>\D`.
# Classes: Msvm_VssComponent; cmdlets Get-VM, Get-VMHardDiskDrive, Get-VHD, Get-VMSecurity
# Minimum: Windows Server 2012 R2
$vssStates = @{}
foreach ($component in (Get-CimInstance -Namespace $namespace -ClassName Msvm_VssComponent)) {
    $vssStates[[string]$component.SystemName] = [int]@($component.OperationalStatus)[0]
}
$all = @(if ($parameters.vm_id) { Get-TheVm $parameters.vm_id } else { Get-VM })
$vms = @(foreach ($vm in $all) {
    $tpm = $false
    $shielded = $false
    if (Get-Command -Name Get-VMSecurity -ErrorAction SilentlyContinue) {
        $security = Get-VMSecurity -VM $vm -ErrorAction SilentlyContinue
        $tpm = [bool]$security.TpmEnabled
        $shielded = [bool]$security.Shielded
    }
    $disks = @(foreach ($drive in @(Get-VMHardDiskDrive -VM $vm)) {
        $passThrough = ($null -ne $drive.DiskNumber)
        $path = [string]$drive.Path
        if ($passThrough) { $path = '' }
        $file = Get-DiskFile $path
        if ($passThrough) { $file.error = 'pass-through' }
        [pscustomobject]@{
            attachment = [string]$drive.Id
            controller = ([string]$drive.ControllerType).ToLowerInvariant()
            controller_number = [int]$drive.ControllerNumber
            location = [int]$drive.ControllerLocation
            pass_through = $passThrough
            shared = [bool]$drive.SupportPersistentReservations
            path = $path
            format = $file.format
            type = $file.type
            virtual_disk_id = $file.virtual_disk_id
            size_bytes = $file.size_bytes
            file_size_bytes = $file.file_size_bytes
            logical_sector_bytes = $file.logical_sector_bytes
            physical_sector_bytes = $file.physical_sector_bytes
            parent_path = $file.parent_path
            error = $file.error
        }
    })
    [pscustomobject]@{
        id = ([string]$vm.Id).ToLowerInvariant()
        name = [string]$vm.Name
        state = [int]$vm.State
        generation = [int]$vm.Generation
        version = [string]$vm.Version
        clustered = [bool]$vm.IsClustered
        operational_status = @($vm.OperationalStatus | ForEach-Object { [int]$_ })
        processors = [int]$vm.ProcessorCount
        memory_bytes = [long]$vm.MemoryStartup
        folder = [string]$vm.Path
        checkpoint_type = [int]$vm.CheckpointType
        parent_checkpoint = [string]$vm.ParentSnapshotId
        replication_mode = [int]$vm.ReplicationMode
        tpm = $tpm
        shielded = $shielded
        vss_status = [int]$vssStates[([string]$vm.Id).ToUpperInvariant()]
        fibre_channel = @($vm.FibreChannelHostBusAdapters | Where-Object { $_ }).Count
        notes = [string]$vm.Notes
        disks = $disks
    }
})
[pscustomobject]@{ vms = $vms }
