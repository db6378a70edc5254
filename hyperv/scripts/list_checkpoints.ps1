# Script: list_checkpoints
# Checkpoints of one VM or of all, recovery checkpoints included.
# Parameters: {"vm_id": guid, or "" for all}
# Value: {checkpoints: [{id: InstanceID, vm_id: guid, name: string (ElementName),
#   kind: "recovery" | "standard" | "replica" | "missing" | "planned" | "other",
#   parent: InstanceID or "", created_at: ISO 8601 UTC}]}
# Classes: Msvm_VirtualSystemSettingData (VirtualSystemType Microsoft:Hyper-V:Snapshot:*)
# Minimum: Windows Server 2012 R2
$wanted = ''
if ($parameters.vm_id) { $wanted = ([guid]$parameters.vm_id).ToString().ToLowerInvariant() }
$checkpoints = @(foreach ($settings in @(Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemSettingData)) {
    $type = [string]$settings.VirtualSystemType
    if ($type -notlike 'Microsoft:Hyper-V:Snapshot:*') { continue }
    $vmId = ([string]$settings.VirtualSystemIdentifier).ToLowerInvariant()
    if ($wanted -and $vmId -ne $wanted) { continue }
    $kind = 'other'
    if ($type -eq 'Microsoft:Hyper-V:Snapshot:Recovery') { $kind = 'recovery' }
    if ($type -eq 'Microsoft:Hyper-V:Snapshot:Realized') { $kind = 'standard' }
    if ($type -eq 'Microsoft:Hyper-V:Snapshot:Missing') { $kind = 'missing' }
    if ($type -eq 'Microsoft:Hyper-V:Snapshot:Planned') { $kind = 'planned' }
    if ($type -like 'Microsoft:Hyper-V:Snapshot:Replica*') { $kind = 'replica' }
    $parent = ''
    if ($settings.Parent) { $parent = [string]$settings.Parent.InstanceID }
    [pscustomobject]@{
        id = [string]$settings.InstanceID
        vm_id = $vmId
        name = [string]$settings.ElementName
        kind = $kind
        parent = $parent
        created_at = Get-IsoTime $settings.CreationTime
    }
})
[pscustomobject]@{ checkpoints = $checkpoints }
