# Script: remove_switch
# Removes a private switch of ours, never another, and none that an adapter is connected to. Repeatable.
# Parameters: {"marker": string, "name": string}
# Value: {found: bool (there was one of ours), used_by: [name of a VM] (then it is still there)}
# Errors: bad-marker
# Classes: none; cmdlets Get-VMSwitch, Get-VM, Get-VMNetworkAdapter, Remove-VMSwitch
# Minimum: Windows Server 2012 R2
Get-MarkedFolder 'switches' $parameters.marker | Out-Null
$switch = Get-VMSwitch | Where-Object { $_.Name -eq [string]$parameters.name } | Select-Object -First 1
if (-not $switch -or [string]$switch.SwitchType -ne 'Private' -or [string]$switch.Notes -ne [string]$parameters.marker) {
    return [pscustomobject]@{ found = $false; used_by = @() }
}
$used = @(Get-VM | Get-VMNetworkAdapter | Where-Object { $_.SwitchId -eq $switch.Id } | ForEach-Object { [string]$_.VMName })
if ($used.Count -eq 0) { Remove-VMSwitch -VMSwitch $switch -Force }
[pscustomobject]@{ found = $true; used_by = $used }
