# Script: list_shadows
# The shadow copies of ours that are still there, by the folders that `create_shadow` makes.
# Parameters: {"prefix": string} (what the marker begins with)
# Value: {shadows: [{marker: string, created_at: ISO 8601 UTC, shadow_ids: [guid]}]}
# Effects: none
# Minimum: Windows Server 2012 R2
$root = Join-Path (Join-Path $env:ProgramData 'Holdfast') 'shadows'
$folders = @(if (Test-Path -LiteralPath $root) { Get-ChildItem -LiteralPath $root | Where-Object { $_.PSIsContainer } })
$shadows = @(foreach ($folder in $folders) {
    if (-not $folder.Name.StartsWith([string]$parameters.prefix, [StringComparison]::Ordinal)) { continue }
    $list = Join-Path $folder.FullName 'shadows.txt'
    $ids = @(if (Test-Path -LiteralPath $list) { Get-Content -LiteralPath $list | Where-Object { $_ } })
    [pscustomobject]@{
        marker = [string]$folder.Name
        created_at = Get-IsoTime $folder.CreationTimeUtc
        shadow_ids = @($ids | ForEach-Object { [string]$_ })
    }
})
[pscustomobject]@{ shadows = $shadows }
