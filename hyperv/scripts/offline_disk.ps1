# Script: offline_disk
# Takes a disk that `online_disk` brought online away again, with its folder. Repeatable.
# Parameters: {"serial": string, "marker": string}
# Value: {found: bool}
# Errors: bad-marker
# Minimum: Windows Server 2012 R2
$folder = Get-MarkedFolder 'volumes' $parameters.marker
$disk = Get-Disk | Where-Object { ([string]$_.SerialNumber).Trim() -eq [string]$parameters.serial } | Select-Object -First 1
$found = [bool]$disk
if ($disk) {
    if (-not $disk.IsOffline) {
        foreach ($partition in @(Get-Partition -DiskNumber $disk.Number)) {
            foreach ($path in @($partition.AccessPaths)) {
                if (([string]$path).TrimEnd('\') -eq $folder) {
                    Remove-PartitionAccessPath -DiskNumber $disk.Number -PartitionNumber $partition.PartitionNumber -AccessPath $path
                }
            }
        }
        Set-Disk -Number $disk.Number -IsOffline $true
    }
}
if (Test-Path -LiteralPath $folder) { [IO.Directory]::Delete($folder, $false) }
[pscustomobject]@{ found = $found }
