# Script: make_disk_files
# Makes empty files for disks that are about to be written, in a folder that is made if need be.
# A name that is taken gets a number. What it makes is written down on the host under the marker,
# so that `remove_disk_files` can take it away. Asked again for a marker: what it made then.
# Parameters: {"marker": string, "folder": path, "names": [string] (without ending)}
# Value: {paths: [path] (one per name), free_bytes: int (of the volume; -1: not known)}
# Errors: bad-marker, bad-folder
# Classes: Win32_Volume
# Minimum: Windows Server 2012 R2
$marked = Get-MarkedFolder 'disks' $parameters.marker
$list = Join-Path $marked 'made.txt'
$folder = ([string]$parameters.folder).TrimEnd('\')
$volume = Get-CimInstance -ClassName Win32_Volume |
    Where-Object { $_.Name -and ($folder + '\').StartsWith([string]$_.Name, [StringComparison]::OrdinalIgnoreCase) } |
    Sort-Object { ([string]$_.Name).Length } | Select-Object -Last 1
if (-not $volume) { Stop-Script 'bad-folder' $folder }
$paths = @(if (Test-Path -LiteralPath $list) {
    Get-Content -LiteralPath $list -Encoding UTF8 | Where-Object { $_.StartsWith('file ') } | ForEach-Object { $_.Substring(5) }
})
if ($paths.Count -eq 0) {
    [IO.Directory]::CreateDirectory($marked) | Out-Null
    $missing = @()
    $next = $folder
    while ($next -and -not [IO.Directory]::Exists($next)) {
        $missing = @($next) + $missing
        $next = [IO.Path]::GetDirectoryName($next)
    }
    foreach ($each in $missing) {
        [IO.Directory]::CreateDirectory($each) | Out-Null
        Add-Content -LiteralPath $list -Encoding UTF8 -Value ('folder ' + $each)
    }
    foreach ($name in @($parameters.names)) {
        $number = 1
        $path = Join-Path $folder ([string]$name + '.vhdx')
        while ([IO.File]::Exists($path)) {
            $number = $number + 1
            $path = Join-Path $folder ([string]$name + '-' + $number + '.vhdx')
        }
        $file = [IO.File]::Open($path, [IO.FileMode]::CreateNew)
        $file.Dispose()
        Add-Content -LiteralPath $list -Encoding UTF8 -Value ('file ' + $path)
        $paths += $path
    }
}
$free = [long]-1
if ($null -ne $volume.FreeSpace) { $free = [long]$volume.FreeSpace }
[pscustomobject]@{ paths = @($paths); free_bytes = $free }
