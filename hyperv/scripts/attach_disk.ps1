# Script: attach_disk
# Attaches a VHDX or VHD file to a VM of ours, or a disk of the host that is offline. A DVD drive
# that New-VM put in the place goes.
# Parameters: {"vm_id": guid, "marker": string, "controller": "ide" | "scsi",
#   "controller_number": int, "location": int, "path": string ("": disk_number),
#   "disk_number": int (-1: path), "boot_first": bool (generation 2)}
# Value: {attachment: string}
# Errors: vm-not-found, not-ours
# Minimum: Windows Server 2012 R2
$vm = Get-MarkedVm $parameters.vm_id $parameters.marker
$adding = @{
    VM = $vm
    ControllerType = [string]$parameters.controller
    ControllerNumber = [int]$parameters.controller_number
    ControllerLocation = [int]$parameters.location
    Passthru = $true
}
Get-VMDvdDrive -VM $vm | Where-Object {
    [string]$_.ControllerType -eq [string]$parameters.controller -and
    [int]$_.ControllerNumber -eq [int]$parameters.controller_number -and
    [int]$_.ControllerLocation -eq [int]$parameters.location
} | Remove-VMDvdDrive
if ($parameters.path) {
    $adding['Path'] = [string]$parameters.path
} else {
    $adding['DiskNumber'] = [int]$parameters.disk_number
}
$drive = Add-VMHardDiskDrive @adding
if ($parameters.boot_first -and [int]$vm.Generation -eq 2) { Set-VMFirmware -VM $vm -FirstBootDevice $drive }
[pscustomobject]@{ attachment = [string]$drive.Id }
