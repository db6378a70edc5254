# Script: list_cluster
# The failover cluster of this host: nodes, which node owns which VM, cluster shared volumes.
# Parameters: {}
# Value: {name: string (empty: no cluster), nodes: [{name, state: int (0 up, 1 down, 2 paused)}],
#   vms: [{vm_id: guid, name, owner: string}], volumes: [{name, owner, path: string, redirected: bool}]}
# Classes: none; cmdlets of FailoverClusters
# Minimum: Windows Server 2012 R2
if (-not (Test-Path -LiteralPath 'HKLM:\Cluster')) {
    return [pscustomobject]@{ name = ''; nodes = @(); vms = @(); volumes = @() }
}
$nodes = @(foreach ($node in @(Get-ClusterNode)) {
    [pscustomobject]@{ name = [string]$node.Name; state = [int]$node.State }
})
$vms = @(foreach ($resource in @(Get-ClusterResource)) {
    if ([string]$resource.ResourceType -eq 'Virtual Machine') {
        $id = ($resource | Get-ClusterParameter -Name VmId).Value
        [pscustomobject]@{
            vm_id = ([string]$id).ToLowerInvariant()
            name = [string]$resource.OwnerGroup.Name
            owner = [string]$resource.OwnerNode.Name
        }
    }
})
$volumes = @(foreach ($volume in @(Get-ClusterSharedVolume)) {
    $information = @($volume.SharedVolumeInfo)[0]
    [pscustomobject]@{
        name = [string]$volume.Name
        owner = [string]$volume.OwnerNode.Name
        path = [string]$information.FriendlyVolumeName
        redirected = [bool]$information.RedirectedAccess
    }
})
[pscustomobject]@{
    name = [string](Get-Cluster).Name
    nodes = $nodes
    vms = $vms
    volumes = $volumes
}
