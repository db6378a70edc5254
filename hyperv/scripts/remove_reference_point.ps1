# Script: remove_reference_point
# Starts to remove a reference point. One that is not there is no error.
# Parameters: {"reference_point_id": InstanceID}
# Value: {found: bool, job_id: InstanceID or ""}
# Errors: wmi-method
# Classes: Msvm_VirtualSystemReferencePointService.DestroyReferencePoint
# Minimum: Windows Server 2016
$point = Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemReferencePoint |
    Where-Object { $_.InstanceID -eq $parameters.reference_point_id } | Select-Object -First 1
if (-not $point) { return [pscustomobject]@{ found = $false; job_id = '' } }
$service = Get-HyperVService Msvm_VirtualSystemReferencePointService
$job = Start-Method $service DestroyReferencePoint @{ AffectedReferencePoint = $point }
[pscustomobject]@{ found = $true; job_id = [string]$job }
