# Script: online_disk
# Brings a disk with one NTFS volume online, found by its serial number, and shows the volume in an
# empty folder of ours (no drive letter). Repeatable.
# Parameters: {"serial": string, "marker": string, "mount": bool (false: stays offline, for pass-through)}
# Value: {disk_number: int, folder: path ("" without mount)}
# Effects: folder %ProgramData%\Holdfast\volumes\<marker>
# Errors: bad-marker, disk-not-found, volume-not-found
# Classes: none; cmdlets Get-Disk, Set-Disk, Get-Partition, Add-PartitionAccessPath
# Minimum: Windows Server 2012 R2
$folder = Get-MarkedFolder 'volumes' $parameters.marker
Update-HostStorageCache
$disk = Get-Disk | Where-Object { ([string]$_.SerialNumber).Trim() -eq [string]$parameters.serial } | Select-Object -First 1
if (-not $disk) { Stop-Script 'disk-not-found' ([string]$parameters.serial) }
if (-not $parameters.mount) {
    if (-not $disk.IsOffline) { Set-Disk -Number $disk.Number -IsOffline $true }
    return [pscustomobject]@{ disk_number = [int]$disk.Number; folder = '' }
}
if ($disk.IsOffline) { Set-Disk -Number $disk.Number -IsOffline $false }
if ($disk.IsReadOnly) { Set-Disk -Number $disk.Number -IsReadOnly $false }
$partition = Get-Partition -DiskNumber $disk.Number | Where-Object { [string]$_.Type -ne 'Reserved' } |
    Sort-Object -Property Size -Descending | Select-Object -First 1
if (-not $partition) { Stop-Script 'volume-not-found' ([string]$parameters.serial) }
if (-not (Test-Path -LiteralPath $folder)) { New-Item -ItemType Directory -Path $folder | Out-Null }
$shown = @($partition.AccessPaths | Where-Object { ([string]$_).TrimEnd('\') -eq $folder })
if ($shown.Count -eq 0) {
    Add-PartitionAccessPath -DiskNumber $disk.Number -PartitionNumber $partition.PartitionNumber -AccessPath $folder
}
[pscustomobject]@{ disk_number = [int]$disk.Number; folder = $folder }
