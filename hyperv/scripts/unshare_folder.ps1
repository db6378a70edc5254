# Script: unshare_folder
# Removes the shares that `share_folder` made for a marker. Repeatable.
# Parameters: {"marker": string}
# Value: {removed: int}
# Errors: bad-marker
# Minimum: Windows Server 2012 R2
Get-MarkedFolder 'shares' $parameters.marker | Out-Null
$mine = @(Get-SmbShare | Where-Object { $_.Description -eq [string]$parameters.marker -and $_.Name -like 'holdfast-*' })
foreach ($share in $mine) { Remove-SmbShare -Name $share.Name -Force }
[pscustomobject]@{ removed = [int]$mine.Count }
