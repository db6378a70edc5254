# Script: list_reference_points
# The reference points of one VM or of all, with the change tracking id of each disk.
# Parameters: {"vm_id": guid, or "" for all}
# Value: {reference_points: [{id: InstanceID, vm_id: guid, type: int (1 log, 2 RCT),
#   consistency: int (1 application, 2 crash), disks: [{attachment: InstanceID, rct_id: string,
#   path: string, virtual_disk_id: guid}]}]}
#   disks pairs the two arrays of the class by position; when their lengths differ, [].
#   path, virtual_disk_id: of the file that the attachment names now, "" when it names none.
# Classes: Msvm_VirtualSystemReferencePoint, Msvm_StorageAllocationSettingData
# Minimum: Windows Server 2016
$wanted = ''
if ($parameters.vm_id) { $wanted = ([guid]$parameters.vm_id).ToString().ToLowerInvariant() }
$storage = @{}
foreach ($setting in @(Get-CimInstance -Namespace $namespace -ClassName Msvm_StorageAllocationSettingData)) {
    $storage[[string]$setting.InstanceID] = [string]@($setting.HostResource)[0]
}
$points = @(foreach ($point in @(Get-CimInstance -Namespace $namespace -ClassName Msvm_VirtualSystemReferencePoint)) {
    $vmId = ([string]$point.VirtualSystemIdentifier).ToLowerInvariant()
    if ($wanted -and $vmId -ne $wanted) { continue }
    $attachments = @($point.VirtualDiskIdentifiers | Where-Object { $null -ne $_ })
    $ids = @($point.ResilientChangeTrackingIdentifiers | Where-Object { $null -ne $_ })
    $disks = @()
    if ($attachments.Count -eq $ids.Count) {
        $disks = @(for ($i = 0; $i -lt $ids.Count; $i++) {
            $path = [string]$storage[[string]$attachments[$i]]
            $diskId = ''
            if ($path) { $diskId = (Get-DiskFile $path).virtual_disk_id }
            [pscustomobject]@{
                attachment = [string]$attachments[$i]
                rct_id = [string]$ids[$i]
                path = $path
                virtual_disk_id = $diskId
            }
        })
    }
    [pscustomobject]@{
        id = [string]$point.InstanceID
        vm_id = $vmId
        type = [int]$point.ReferencePointType
        consistency = [int]$point.ConsistencyLevel
        disks = $disks
    }
})
[pscustomobject]@{ reference_points = $points }
