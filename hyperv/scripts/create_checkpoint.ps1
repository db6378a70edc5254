# Script: create_checkpoint
# Starts a recovery checkpoint and returns at once; `job_state` says when and whether it is made.
# It has no name of ours yet: `name_checkpoint` follows.
# Parameters: {"vm_id": guid, "consistency": "application" | "crash", "backup_type": "copy" | "full"}
#   full: writers in the guest see a full backup and may truncate their logs.
# Value: {job_id: InstanceID, or "" when done already, checkpoint_id: InstanceID, or "" when not known yet}
# Errors: vm-not-found, wmi-method
# Classes: Msvm_VirtualSystemSnapshotService.CreateSnapshot, Msvm_VirtualSystemSnapshotSettingData
# Minimum: Windows Server 2016, VM version 6.2
$system = Get-ComputerSystem $parameters.vm_id
$levels = @{ application = 1; crash = 2 }
$types = @{ full = 1; copy = 2 }
$class = Get-CimClass -Namespace $namespace -ClassName Msvm_VirtualSystemSnapshotSettingData
$known = @($class.CimClassProperties | ForEach-Object { $_.Name })
$wanted = @{ ConsistencyLevel = [byte]$levels[[string]$parameters.consistency] }
if ($known -contains 'GuestBackupType') {
    $wanted['GuestBackupType'] = [byte]$types[[string]$parameters.backup_type]
}
if ($known -contains 'IgnoreNonSnapshottableDisks') { $wanted['IgnoreNonSnapshottableDisks'] = $true }
$settings = New-CimInstance -CimClass $class -ClientOnly -Property $wanted
$service = Get-HyperVService Msvm_VirtualSystemSnapshotService
$result = Invoke-CimMethod -InputObject $service -MethodName CreateSnapshot -Arguments @{
    AffectedSystem = $system
    SnapshotSettings = Get-EmbeddedText $settings
    SnapshotType = [uint16]32768
}
if ($result.ReturnValue -ne 0 -and $result.ReturnValue -ne 4096) {
    Stop-Script 'wmi-method' 'CreateSnapshot' $result.ReturnValue
}
$job = ''
$made = ''
if ($result.Job) { $job = [string]$result.Job.InstanceID }
if ($result.ResultingSnapshot) { $made = [string]$result.ResultingSnapshot.InstanceID }
[pscustomobject]@{ job_id = $job; checkpoint_id = $made }
