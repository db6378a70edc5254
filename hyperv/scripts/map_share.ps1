# Script: map_share
# Lets this host, its services and VMs included, use a share of ours with an account of the share,
# encrypted, until the host restarts. Repeatable.
# Parameters: {"path": string (UNC), "port": int (445, unless the host can say another),
#   "user": string, "password": string}
# Value: {path: string}
# Errors: no-global-mapping (older than 2019), smb-port, and what New-SmbGlobalMapping throws
# Minimum: Windows Server 2019
$path = [string]$parameters.path
$command = Get-Command -Name New-SmbGlobalMapping -ErrorAction SilentlyContinue
if (-not $command) { Stop-Script 'no-global-mapping' $path }
$there = Get-SmbGlobalMapping -ErrorAction SilentlyContinue | Where-Object { [string]$_.RemotePath -eq $path } | Select-Object -First 1
if (-not $there) {
    $password = New-Object Security.SecureString
    foreach ($character in ([string]$parameters.password).ToCharArray()) { $password.AppendChar($character) }
    $mapping = @{
        RemotePath = $path
        Credential = New-Object Management.Automation.PSCredential ([string]$parameters.user), $password
        Persistent = $false
        RequirePrivacy = $true
    }
    if ([int]$parameters.port -ne 445) {
        if (-not $command.Parameters.ContainsKey('TcpPort')) { Stop-Script 'smb-port' ([string]$parameters.port) }
        $mapping['TcpPort'] = [int]$parameters.port
    }
    New-SmbGlobalMapping @mapping | Out-Null
}
[pscustomobject]@{ path = $path }
