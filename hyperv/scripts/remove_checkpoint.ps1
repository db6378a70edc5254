# Script: remove_checkpoint
# Starts to remove a recovery checkpoint of ours; its leaf is merged. One that is not there is no
# error. A checkpoint of another kind is refused.
# Parameters: {"checkpoint_id": InstanceID}
# Value: {found: bool, job_id: InstanceID or ""}
# Errors: not-recovery, wmi-method
# Classes: Msvm_VirtualSystemSnapshotService.DestroySnapshot
# Minimum: Windows Server 2016
$settings = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemSettingData |
    Where-Object { $_.InstanceID -eq $parameters.checkpoint_id } | Select-Object -First 1
if (-not $settings) { return [pscustomobject]@{ found = $false; job_id = '' } }
if ([string]$settings.VirtualSystemType -ne 'Microsoft:Hyper-V:Snapshot:Recovery') {
    Stop-Script 'not-recovery' ([string]$settings.ElementName)
}
$service = Get-HyperVService Msvm_VirtualSystemSnapshotService
$job = Start-Method $service DestroySnapshot @{ AffectedSnapshot = $settings }
[pscustomobject]@{ found = $true; job_id = [string]$job }
