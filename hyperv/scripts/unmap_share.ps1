# Script: unmap_share
# Ends what `map_share` made. Repeatable.
# Parameters: {"path": string (UNC)}
# Value: {found: bool}
# Minimum: Windows Server 2019
$path = [string]$parameters.path
$found = $false
if (Get-Command -Name Get-SmbGlobalMapping -ErrorAction SilentlyContinue) {
    $there = Get-SmbGlobalMapping -ErrorAction SilentlyContinue | Where-Object { [string]$_.RemotePath -eq $path } | Select-Object -First 1
    $found = [bool]$there
    if ($there) { Remove-SmbGlobalMapping -RemotePath $path -Force }
}
[pscustomobject]@{ found = $found }
