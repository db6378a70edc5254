# Script: move_storage
# Moves all files of a VM to a folder while it runs. Blocks until it is done, which may take hours.
# Parameters: {"vm_id": guid, "folder": path}
# Value: {folder: path, disk_paths: [path]}
# Errors: vm-not-found, and what Move-VMStorage throws
# Minimum: Windows Server 2012 R2
$vm = Get-TheVm $parameters.vm_id
Move-VMStorage -VM $vm -DestinationStoragePath ([string]$parameters.folder)
$vm = Get-TheVm $parameters.vm_id
[pscustomobject]@{
    folder = [string]$vm.Path
    disk_paths = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object { [string]$_.Path })
}
