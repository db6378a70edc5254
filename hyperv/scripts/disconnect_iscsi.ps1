# Script: disconnect_iscsi
# Logs out of our iSCSI target and forgets its portal when no other target uses it. Repeatable.
# Parameters: {"portal": address, "port": int, "target": iqn}
# Value: {found: bool}
# Minimum: Windows Server 2012 R2
$target = Get-IscsiTarget -ErrorAction SilentlyContinue | Where-Object { [string]$_.NodeAddress -eq [string]$parameters.target } |
    Select-Object -First 1
$found = [bool]$target
if ($target -and $target.IsConnected) {
    Disconnect-IscsiTarget -NodeAddress ([string]$parameters.target) -Confirm:$false
}
$portal = Get-IscsiTargetPortal -ErrorAction SilentlyContinue | Where-Object {
    [string]$_.TargetPortalAddress -eq [string]$parameters.portal -and
    [int]$_.TargetPortalPortNumber -eq [int]$parameters.port
} | Select-Object -First 1
if ($portal) {
    $busy = @($portal | Get-IscsiTarget -ErrorAction SilentlyContinue | Where-Object { $_.IsConnected })
    if ($busy.Count -eq 0) { $portal | Remove-IscsiTargetPortal -Confirm:$false }
}
[pscustomobject]@{ found = $found }
