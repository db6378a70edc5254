# Script: remove_shadow
# Removes the shadow copies and the folder that `create_shadow` made for a marker. Repeatable.
# Parameters: {"marker": string}
# Value: {removed: int} (shadow copies)
# Errors: bad-marker
# Classes: Win32_ShadowCopy, Win32_Volume
# Minimum: Windows Server 2012 R2
$folder = Get-MarkedFolder 'shadows' $parameters.marker
$removed = 0
if (Test-Path -LiteralPath $folder) {
    $list = Join-Path $folder 'shadows.txt'
    $ids = @(if (Test-Path -LiteralPath $list) { Get-Content -LiteralPath $list | Where-Object { $_ } })
    foreach ($shadow in @(Get-CimInstance -ClassName Win32_ShadowCopy)) {
        $id = ([string]$shadow.ID).Trim('{', '}').ToLowerInvariant()
        $exposed = [string]$shadow.ExposedName
        $inside = $exposed -and $exposed.StartsWith($folder, [StringComparison]::OrdinalIgnoreCase)
        if (($ids -contains $id) -or $inside) {
            Remove-CimInstance -InputObject $shadow
            $removed = $removed + 1
        }
    }
    foreach ($mount in @(Get-ChildItem -LiteralPath $folder | Where-Object { $_.PSIsContainer })) {
        [IO.Directory]::Delete($mount.FullName, $false)
    }
    Remove-Item -LiteralPath $folder -Recurse -Force
}
[pscustomobject]@{ removed = [int]$removed }
