# Script: list_disk_files
# The markers of ours that files of unfinished restores were made for.
# Parameters: {"prefix": string} (what the marker begins with)
# Value: {markers: [string]}
# Minimum: Windows Server 2012 R2
$root = Join-Path (Join-Path $env:ProgramData 'Holdfast') 'disks'
$found = @(if (Test-Path -LiteralPath $root) {
    Get-ChildItem -LiteralPath $root | Where-Object {
        $_.PSIsContainer -and $_.Name.StartsWith([string]$parameters.prefix, [StringComparison]::Ordinal)
    } | ForEach-Object { [string]$_.Name }
})
[pscustomobject]@{ markers = $found }
