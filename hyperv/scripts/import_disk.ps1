# Script: import_disk
# Copies a pass-through disk of a VM of ours, which is off, into a dynamic VHDX file, and gives the VM
# the file in its place. A file of that name is made anew unless the VM has it already, so the name
# is one that nobody else uses.
# Parameters: {"vm_id": guid, "marker": string, "controller": "ide" | "scsi",
#   "controller_number": int, "location": int, "serial": string (of the disk), "path": path}
# Value: {copied: bool (false: the VM had the file already)}
# Errors: vm-not-found, not-ours, vm-not-off, disk-not-found, disk-changed (the VM has another disk
#   there)
# Minimum: Windows Server 2012 R2
$vm = Get-MarkedVm $parameters.vm_id $parameters.marker
if ([string]$vm.State -ne 'Off') { Stop-Script 'vm-not-off' ([string]$vm.State) }
$path = [string]$parameters.path
$drive = Get-VMHardDiskDrive -VM $vm | Where-Object {
    [string]$_.ControllerType -eq [string]$parameters.controller -and
    [int]$_.ControllerNumber -eq [int]$parameters.controller_number -and
    [int]$_.ControllerLocation -eq [int]$parameters.location
} | Select-Object -First 1
if (-not $drive) { Stop-Script 'disk-not-found' $path }
if ([string]$drive.Path -eq $path) { return [pscustomobject]@{ copied = $false } }
$disk = Get-Disk | Where-Object { ([string]$_.SerialNumber).Trim() -eq [string]$parameters.serial } | Select-Object -First 1
if (-not $disk) { Stop-Script 'disk-not-found' ([string]$parameters.serial) }
if ($null -eq $drive.DiskNumber -or [int]$drive.DiskNumber -ne [int]$disk.Number) { Stop-Script 'disk-changed' ([string]$drive.Path) }
$folder = Split-Path -Path $path -Parent
if (-not (Test-Path -LiteralPath $folder)) { New-Item -ItemType Directory -Path $folder | Out-Null }
if (Test-Path -LiteralPath $path) { Remove-Item -LiteralPath $path }
New-VHD -Path $path -SourceDisk ([int]$disk.Number) -Dynamic | Out-Null
Set-VMHardDiskDrive -VMHardDiskDrive $drive -Path $path
[pscustomobject]@{ copied = $true }
