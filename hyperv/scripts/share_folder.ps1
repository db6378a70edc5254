# Script: share_folder
# Shows a folder under a hidden share of ours, for hosts whose admin shares are switched off. Only
# the account that asks may use it. Repeatable.
# Parameters: {"marker": string, "folder": path, "writable": bool}
# Value: {share: string}
# Errors: bad-marker, folder-not-found
# Classes: none; cmdlets Get-SmbShare, New-SmbShare
# Minimum: Windows Server 2012 R2
Get-MarkedFolder 'shares' $parameters.marker | Out-Null
if (-not (Test-Path -LiteralPath $parameters.folder -PathType Container)) {
    Stop-Script 'folder-not-found' ([string]$parameters.folder)
}
$wanted = ([string]$parameters.folder).TrimEnd('\')
$mine = @(Get-SmbShare | Where-Object { $_.Description -eq [string]$parameters.marker })
$share = $mine | Where-Object { ([string]$_.Path).TrimEnd('\') -eq $wanted } | Select-Object -First 1
if (-not $share) {
    $name = 'holdfast-' + [guid]::NewGuid().ToString('N').Substring(0, 16) + '$'
    $account = [Security.Principal.WindowsIdentity]::GetCurrent().Name
    $rights = @{ ReadAccess = $account }
    if ($parameters.writable) { $rights = @{ FullAccess = $account } }
    $share = New-SmbShare -Name $name -Path ([string]$parameters.folder) -Description ([string]$parameters.marker) -CachingMode None @rights
}
[pscustomobject]@{ share = [string]$share.Name }
