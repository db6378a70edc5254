# Script: swap_disks
# Points disks of a VM that is off to other files, all of them or none. For a restore in place.
# Parameters: {"vm_id": guid, "disks": [{"controller": "ide" | "scsi", "controller_number": int,
#   "location": int, "path": string, "expected_path": string}]}
# Value: {swapped: int}
# Errors: vm-not-found, vm-not-off, disk-not-found, disk-changed (its path is not the expected one)
# Minimum: Windows Server 2012 R2
$vm = Get-TheVm $parameters.vm_id
if ([string]$vm.State -ne 'Off') { Stop-Script 'vm-not-off' ([string]$vm.State) }
$plan = @(foreach ($disk in @($parameters.disks)) {
    $drive = Get-VMHardDiskDrive -VM $vm | Where-Object {
        [string]$_.ControllerType -eq [string]$disk.controller -and
        [int]$_.ControllerNumber -eq [int]$disk.controller_number -and
        [int]$_.ControllerLocation -eq [int]$disk.location
    } | Select-Object -First 1
    if (-not $drive) { Stop-Script 'disk-not-found' ([string]$disk.expected_path) }
    if ([string]$drive.Path -ne [string]$disk.expected_path) { Stop-Script 'disk-changed' ([string]$drive.Path) }
    [pscustomobject]@{ drive = $drive; old = [string]$drive.Path; path = [string]$disk.path }
})
$done = @()
try {
    foreach ($step in $plan) {
        Set-VMHardDiskDrive -VMHardDiskDrive $step.drive -Path $step.path
        $done += $step
    }
} catch {
    $failure = $_.Exception
    foreach ($step in $done) { Set-VMHardDiskDrive -VMHardDiskDrive $step.drive -Path $step.old }
    throw $failure
}
[pscustomobject]@{ swapped = [int]$done.Count }
