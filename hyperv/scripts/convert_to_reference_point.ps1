# Script: convert_to_reference_point
# Starts to turn a recovery checkpoint into a reference point: the checkpoint goes, its leaf is
# merged while the VM runs, and changes from the checkpoint's moment on can be asked for.
# Every handle on the frozen files must be closed, or the merge fails.
# Parameters: {"checkpoint_id": InstanceID}
# Value: {job_id: InstanceID or "", reference_point_id: InstanceID, or "" when not known yet}
# Errors: checkpoint-not-found, wmi-method
# Classes: Msvm_VirtualSystemSnapshotService.ConvertToReferencePoint
# Minimum: Windows Server 2016
$settings = Get-ByInstanceId Msvm_VirtualSystemSettingData $parameters.checkpoint_id 'checkpoint-not-found'
$service = Get-HyperVService Msvm_VirtualSystemSnapshotService
$result = Invoke-CimMethod -InputObject $service -MethodName ConvertToReferencePoint -Arguments @{
    AffectedSnapshot = $settings
    ReferencePointSettings = ''
}
if ($result.ReturnValue -ne 0 -and $result.ReturnValue -ne 4096) {
    Stop-Script 'wmi-method' 'ConvertToReferencePoint' $result.ReturnValue
}
$job = ''
$made = ''
if ($result.Job) { $job = [string]$result.Job.InstanceID }
if ($result.ResultingReferencePoint) { $made = [string]$result.ResultingReferencePoint.InstanceID }
[pscustomobject]@{ job_id = $job; reference_point_id = $made }
