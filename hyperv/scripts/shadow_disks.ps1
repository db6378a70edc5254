# Script: shadow_disks
# The chains of disk files inside a shadow copy, leaf first. Where the Hyper-V writer left an
# AutoRecovery child of a file beside it, that is the consistent leaf.
# Parameters: {"disks": [{"attachment": string, "controller": string, "controller_number": int,
#   "location": int, "path": path inside the shadow copy}]}
# Value: {disks: [{attachment, virtual_disk_id: string, controller: string, controller_number: int,
#   location: int, chain: [{path, format, type, virtual_disk_id, size_bytes, file_size_bytes,
#   logical_sector_bytes, physical_sector_bytes, parent_path, error}]}]}
#   A parent is looked for beside its child first: its stored path is that of the live volume.
# Errors: disk-not-found
# Minimum: Windows Server 2012 R2
$disks = @(foreach ($disk in @($parameters.disks)) {
    $path = [string]$disk.path
    if (-not (Test-Path -LiteralPath $path)) { Stop-Script 'disk-not-found' $path }
    $folder = Split-Path -Path $path -Parent
    foreach ($file in @(Get-ChildItem -LiteralPath $folder | Where-Object { $_.Name -like '*-AutoRecovery.avhdx' })) {
        $parent = (Get-DiskFile $file.FullName).parent_path
        if ($parent -and (Split-Path -Path $parent -Leaf) -eq (Split-Path -Path $path -Leaf)) { $path = $file.FullName }
    }
    $chain = @()
    $next = $path
    while ($next -and $chain.Count -lt 64) {
        $file = Get-DiskFile $next
        $chain += $file
        $next = ''
        if ($file.parent_path) {
            $beside = Join-Path (Split-Path -Path $file.path -Parent) (Split-Path -Path $file.parent_path -Leaf)
            $next = $file.parent_path
            if (Test-Path -LiteralPath $beside) { $next = $beside }
        }
    }
    [pscustomobject]@{
        attachment = [string]$disk.attachment
        virtual_disk_id = [string]$chain[0].virtual_disk_id
        controller = [string]$disk.controller
        controller_number = [int]$disk.controller_number
        location = [int]$disk.location
        chain = $chain
    }
})
[pscustomobject]@{ disks = $disks }
