# Script: make_switch
# Makes a private switch: it reaches neither this host nor any network, only VMs that are on it. Its
# notes are the marker. One of this name that is ours is found again. Repeatable.
# Parameters: {"marker": string, "name": string}
# Value: {id: guid}
# Errors: bad-marker, not-ours (another switch is called so)
# Classes: none; cmdlets Get-VMSwitch, New-VMSwitch
# Minimum: Windows Server 2012 R2
Get-MarkedFolder 'switches' $parameters.marker | Out-Null
$switch = Get-VMSwitch | Where-Object { $_.Name -eq [string]$parameters.name } | Select-Object -First 1
if (-not $switch) {
    $switch = New-VMSwitch -Name ([string]$parameters.name) -SwitchType Private -Notes ([string]$parameters.marker)
}
if ([string]$switch.SwitchType -ne 'Private' -or [string]$switch.Notes -ne [string]$parameters.marker) {
    Stop-Script 'not-ours' ([string]$switch.Name)
}
[pscustomobject]@{ id = ([string]$switch.Id).ToLowerInvariant() }
