# Script: job_state
# How a job of the Hyper-V management service stands. Jobs vanish some minutes after their end.
# Parameters: {"job_id": InstanceID}
# Value: {found: bool, state: int (JobState; below 7 not over, 7 completed, 32768 with warnings),
#   percent: int, error_code: int, error: string, description: string,
#   checkpoints: [InstanceID], reference_points: [InstanceID] (what it made or works on)}
# Classes: Msvm_ConcreteJob, Msvm_StorageJob, Msvm_AffectedJobElement
# Minimum: Windows Server 2012 R2
$job = Get-CimInstance -Namespace $namespace -ClassName CIM_ConcreteJob |
    Where-Object { $_.InstanceID -eq $parameters.job_id } | Select-Object -First 1
if (-not $job) {
    return [pscustomobject]@{
        found = $false
        state = 0
        percent = 0
        error_code = 0
        error = ''
        description = ''
        checkpoints = @()
        reference_points = @()
    }
}
$affected = @(Get-CimAssociatedInstance -InputObject $job -Association Msvm_AffectedJobElement -ErrorAction SilentlyContinue)
$words = [string]$job.ErrorDescription
if (-not $words) { $words = [string]$job.ErrorSummaryDescription }
[pscustomobject]@{
    found = $true
    state = [int]$job.JobState
    percent = [int]$job.PercentComplete
    error_code = [long]$job.ErrorCode
    error = $words
    description = [string]$job.Description
    checkpoints = @($affected | Where-Object { $_.CimClass.CimClassName -eq 'Msvm_VirtualSystemSettingData' } |
        ForEach-Object { [string]$_.InstanceID })
    reference_points = @($affected | Where-Object { $_.CimClass.CimClassName -eq 'Msvm_VirtualSystemReferencePoint' } |
        ForEach-Object { [string]$_.InstanceID })
}
