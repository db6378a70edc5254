# Script: connect_iscsi
# Logs in to our iSCSI target with one-way CHAP, not persistent. Repeatable.
# Parameters: {"portal": address, "port": int, "target": iqn, "chap_user": string,
#   "chap_secret": string (12 to 16 characters)}
# Value: {initiator: iqn of this host, connected: bool}
# Errors: iscsi-service, target-not-found, and what the iSCSI cmdlets throw
# Classes: none; cmdlets of iSCSI
# Minimum: Windows Server 2012 R2
$service = Get-Service -Name MSiSCSI -ErrorAction SilentlyContinue
if (-not $service) { Stop-Script 'iscsi-service' 'the Microsoft iSCSI initiator service is absent' }
if ([string]$service.Status -ne 'Running') { Start-Service -Name MSiSCSI }
$initiator = [string](Get-InitiatorPort | Where-Object { [string]$_.ConnectionType -eq 'iSCSI' } | Select-Object -First 1).NodeAddress
$portal = Get-IscsiTargetPortal -ErrorAction SilentlyContinue | Where-Object {
    [string]$_.TargetPortalAddress -eq [string]$parameters.portal -and
    [int]$_.TargetPortalPortNumber -eq [int]$parameters.port
} | Select-Object -First 1
if (-not $portal) {
    New-IscsiTargetPortal -TargetPortalAddress ([string]$parameters.portal) -TargetPortalPortNumber ([int]$parameters.port) | Out-Null
} else {
    $portal | Update-IscsiTargetPortal
}
$target = Get-IscsiTarget | Where-Object { [string]$_.NodeAddress -eq [string]$parameters.target } | Select-Object -First 1
if (-not $target) { Stop-Script 'target-not-found' ([string]$parameters.target) }
if (-not $target.IsConnected) {
    Connect-IscsiTarget -NodeAddress ([string]$parameters.target) -TargetPortalAddress ([string]$parameters.portal) -TargetPortalPortNumber ([int]$parameters.port) -IsPersistent $false -AuthenticationType ONEWAYCHAP -ChapUsername ([string]$parameters.chap_user) -ChapSecret ([string]$parameters.chap_secret) | Out-Null
}
Update-HostStorageCache
$target = Get-IscsiTarget | Where-Object { [string]$_.NodeAddress -eq [string]$parameters.target } | Select-Object -First 1
[pscustomobject]@{ initiator = $initiator; connected = [bool]$target.IsConnected }
