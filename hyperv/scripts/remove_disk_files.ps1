# Script: remove_disk_files
# Takes away what `make_disk_files` made for a marker: files, then folders that are empty, then the
# record of it. A file that a VM of this host uses, also as a parent of what it writes to, stays; if
# the VM carries the marker, nothing is taken away. Repeatable.
# Parameters: {"marker": string, "keep": bool (take away only the record)}
# Value: {removed: int} (files)
# Errors: bad-marker, still-attached
# Minimum: Windows Server 2012 R2
$marked = Get-MarkedFolder 'disks' $parameters.marker
$list = Join-Path $marked 'made.txt'
$removed = 0
$lines = @(if (Test-Path -LiteralPath $list) { Get-Content -LiteralPath $list -Encoding UTF8 })
if (-not $parameters.keep) {
    $used = @{}
    foreach ($vm in @(Get-VM)) {
        foreach ($drive in @(Get-VMHardDiskDrive -VM $vm)) {
            if (-not $drive.Path) { continue }
            foreach ($file in @(Get-DiskChain ([string]$drive.Path))) {
                $used[$file.path.ToLowerInvariant()] = [string]$vm.Notes
            }
        }
    }
    $files = @($lines | Where-Object { $_.StartsWith('file ') } | ForEach-Object { $_.Substring(5) })
    $ours = @($files | Where-Object { $used.ContainsKey($_.ToLowerInvariant()) -and
        $used[$_.ToLowerInvariant()].IndexOf([string]$parameters.marker, [StringComparison]::Ordinal) -ge 0 })
    if ($ours.Count) { Stop-Script 'still-attached' $ours[0] }
    foreach ($file in $files) {
        if ($used.ContainsKey($file.ToLowerInvariant())) { continue }
        if ([IO.File]::Exists($file)) {
            [IO.File]::Delete($file)
            $removed = $removed + 1
        }
    }
    $folders = @($lines | Where-Object { $_.StartsWith('folder ') } | ForEach-Object { $_.Substring(7) })
    [array]::Reverse($folders)
    foreach ($folder in $folders) {
        if (-not [IO.Directory]::Exists($folder)) { continue }
        foreach ($inside in @([IO.Directory]::GetDirectories($folder)) + $folder) {
            if (@([IO.Directory]::GetFileSystemEntries($inside)).Count -eq 0) { [IO.Directory]::Delete($inside, $false) }
        }
    }
}
if ([IO.Directory]::Exists($marked)) { [IO.Directory]::Delete($marked, $true) }
[pscustomobject]@{ removed = [int]$removed }
