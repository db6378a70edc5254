# Script: list_shares
# The shares of ours that are still there.
# Parameters: {"prefix": string} (what the marker begins with)
# Value: {shares: [{marker: string, share: string, path: string}]}
# Minimum: Windows Server 2012 R2
$shares = @(foreach ($share in @(Get-SmbShare | Where-Object { $_.Name -like 'holdfast-*' })) {
    if (-not ([string]$share.Description).StartsWith([string]$parameters.prefix, [StringComparison]::Ordinal)) { continue }
    [pscustomobject]@{
        marker = [string]$share.Description
        share = [string]$share.Name
        path = [string]$share.Path
    }
})
[pscustomobject]@{ shares = $shares }
