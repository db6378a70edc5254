# Script: list_switches
# The virtual switches of this host.
# Parameters: {}
# Value: {switches: [{id: guid, name: string, type: "private" | "internal" | "external"}]}
# Minimum: Windows Server 2012 R2
$switches = @(foreach ($switch in @(Get-VMSwitch)) {
    [pscustomobject]@{
        id = ([string]$switch.Id).ToLowerInvariant()
        name = [string]$switch.Name
        type = ([string]$switch.SwitchType).ToLowerInvariant()
    }
})
[pscustomobject]@{ switches = $switches }
