# Script: remove_vm
# Stops and removes a VM of ours, never another. Its disk files stay, and the folders that hold any
# file. Repeatable.
# Parameters: {"vm_id": guid, "marker": string}
# Value: {found: bool, disk_paths: [path]}
# Errors: not-ours
# Minimum: Windows Server 2012 R2
$wanted = [guid]$parameters.vm_id
$vm = Get-VM | Where-Object { $_.Id -eq $wanted } | Select-Object -First 1
if (-not $vm) { return [pscustomobject]@{ found = $false; disk_paths = @() } }
$vm = Get-MarkedVm $parameters.vm_id $parameters.marker
$paths = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object { [string]$_.Path } | Where-Object { $_ })
if ([string]$vm.State -ne 'Off') { Stop-VM -VM $vm -TurnOff -Force }
$place = [string]$vm.Path
Remove-VM -VM $vm -Force
foreach ($name in @('Virtual Machines', 'Snapshots', '')) {
    $folder = $place
    if ($name) { $folder = Join-Path $place $name }
    if ((Test-Path -LiteralPath $folder) -and @(Get-ChildItem -LiteralPath $folder -Force).Count -eq 0) {
        [IO.Directory]::Delete($folder, $false)
    }
}
[pscustomobject]@{ found = $true; disk_paths = $paths }
