# Script: create_shadow
# A shadow copy of the volumes that hold a VM, made with the Hyper-V writer (so that guests are
# brought to a consistent state), and shown in an empty folder per volume. For hosts and VMs
# without reference points. Blocks until it is made.
# Parameters: {"marker": string, "vm_id": guid, "volumes": ["D:\" or a mount point's path, ...]}
# Value: {marker, shadows: [{shadow_id: guid, volume: path, exposed: path}]}
#   A file `<volume>\x\y.vhdx` reads as `<exposed>\x\y.vhdx`; see `shadow_disks`.
# Effects: folder %ProgramData%\Holdfast\shadows\<marker> with request.dsh, meta.cab, log.txt, v0, v1, ...
# A volume whose name has anything but letters, digits, `_`, `.`, `-` is refused: the words of a
#   diskshadow script cannot be quoted.
# Errors: bad-marker, bad-volume, marker-in-use, diskshadow (message: the end of its log)
# Programs: diskshadow.exe; Hyper-V writer {66841cd4-6ded-4f4b-8f17-fd23f8ddc3de}
# Classes: Win32_Volume, Win32_ShadowCopy
# Minimum: Windows Server 2012 R2
$folder = Get-MarkedFolder 'shadows' $parameters.marker
if (Test-Path -LiteralPath $folder) { Stop-Script 'marker-in-use' $folder }
$vm = Get-TheVm $parameters.vm_id
$volumes = @(foreach ($name in @($parameters.volumes)) {
    $found = Get-CimInstance -ClassName Win32_Volume | Where-Object { $_.Name -eq [string]$name } | Select-Object -First 1
    if (-not $found) { Stop-Script 'bad-volume' ([string]$name) }
    if ([string]$found.Name -notmatch '^[A-Za-z]:\\[A-Za-z0-9_.\\-]*$') { Stop-Script 'bad-volume' ([string]$name) }
    $found
})
New-Item -ItemType Directory -Path $folder | Out-Null
$lines = @('set verbose on', 'set context persistent')
$lines += 'set metadata ' + (Join-Path $folder 'meta.cab')
$lines += 'writer verify {66841cd4-6ded-4f4b-8f17-fd23f8ddc3de}'
$lines += 'begin backup'
for ($i = 0; $i -lt $volumes.Count; $i++) {
    $lines += 'add volume ' + ([string]$volumes[$i].Name).TrimEnd('\') + ' alias holdfast' + $i
}
$lines += 'create'
for ($i = 0; $i -lt $volumes.Count; $i++) {
    $mount = Join-Path $folder ('v' + $i)
    New-Item -ItemType Directory -Path $mount | Out-Null
    $lines += 'expose %holdfast' + $i + '% ' + $mount
}
$lines += 'end backup'
$request = Join-Path $folder 'request.dsh'
$log = Join-Path $folder 'log.txt'
$before = @(Get-CimInstance -ClassName Win32_ShadowCopy | ForEach-Object { [string]$_.ID })
[IO.File]::WriteAllLines($request, [string[]]$lines, [Text.Encoding]::ASCII)
& diskshadow.exe /s $request /l $log | Out-Null
$failed = ($LASTEXITCODE -ne 0)
$made = @(Get-CimInstance -ClassName Win32_ShadowCopy | Where-Object { $before -notcontains [string]$_.ID })
$shadows = @(for ($i = 0; $i -lt $volumes.Count; $i++) {
    $of = $made | Where-Object { [string]$_.VolumeName -eq [string]$volumes[$i].DeviceID } | Select-Object -First 1
    if ($of) {
        [pscustomobject]@{
            shadow_id = ([string]$of.ID).Trim('{', '}').ToLowerInvariant()
            volume = [string]$volumes[$i].Name
            exposed = Join-Path $folder ('v' + $i)
        }
    }
})
$ids = @($shadows | ForEach-Object { $_.shadow_id })
[IO.File]::WriteAllLines((Join-Path $folder 'shadows.txt'), [string[]]$ids, [Text.Encoding]::ASCII)
if ($failed -or $shadows.Count -ne $volumes.Count) {
    $tail = ''
    if (Test-Path -LiteralPath $log) { $tail = (@(Get-Content -LiteralPath $log -Tail 20) -join ' ') }
    Stop-Script 'diskshadow' $tail
}
[pscustomobject]@{ marker = [string]$parameters.marker; shadows = $shadows }
