# Script: host_facts
# What this host is, and what it can do for a backup.
# Parameters: {}
# Value: {computer_name, fqdn, domain: string, domain_joined: bool, os_version: "10.0.20348",
#   os_caption: string, server: bool, powershell_version: string, user: string,
#   administrator: bool, hyperv: bool, reference_points: bool, diskshadow: bool,
#   vm_versions: [string], vm_folder, disk_folder, cluster: string (empty: none),
#   iscsi_service: "running" | "stopped" | "absent", processors: int, memory_bytes: int,
#   admin_shares: bool}
# Classes: Win32_OperatingSystem, Win32_ComputerSystem, Msvm_VirtualSystemReferencePointService
# Minimum: Windows Server 2012 R2
$system = Get-CimInstance -ClassName Win32_OperatingSystem
$computer = Get-CimInstance -ClassName Win32_ComputerSystem
$identity = [Security.Principal.WindowsIdentity]::GetCurrent()
$principal = New-Object Security.Principal.WindowsPrincipal $identity
$hyperv = [bool](Get-Command -Name Get-VMHost -ErrorAction SilentlyContinue)
$settings = $null
$points = $null
if ($hyperv) {
    $settings = Get-VMHost
    $points = Get-CimClass -Namespace $namespace -ClassName Msvm_VirtualSystemReferencePointService -ErrorAction SilentlyContinue
}
$iscsi = Get-Service -Name MSiSCSI -ErrorAction SilentlyContinue
$iscsiState = 'absent'
if ($iscsi) {
    $iscsiState = 'stopped'
    if ([string]$iscsi.Status -eq 'Running') { $iscsiState = 'running' }
}
$cluster = Get-ItemProperty -LiteralPath 'HKLM:\Cluster' -ErrorAction SilentlyContinue
$clusterName = ''
if ($cluster) { $clusterName = [string]$cluster.ClusterName }
$shares = @(Get-CimInstance -ClassName Win32_Share | Where-Object { $_.Name -match '^[A-Z]\$$' })
$network = [Net.NetworkInformation.IPGlobalProperties]::GetIPGlobalProperties()
$fqdn = [string]$network.HostName
if ($network.DomainName) { $fqdn = $fqdn + '.' + [string]$network.DomainName }
[pscustomobject]@{
    computer_name = [string]$env:COMPUTERNAME
    fqdn = $fqdn
    domain = [string]$computer.Domain
    domain_joined = [bool]$computer.PartOfDomain
    os_version = [string]$system.Version
    os_caption = [string]$system.Caption
    server = [bool]($system.ProductType -ne 1)
    powershell_version = [string]$PSVersionTable.PSVersion
    user = [string]$identity.Name
    administrator = [bool]$principal.IsInRole([Security.Principal.WindowsBuiltInRole]::Administrator)
    hyperv = $hyperv
    reference_points = [bool]$points
    diskshadow = [bool](Get-Command -Name diskshadow.exe -ErrorAction SilentlyContinue)
    vm_versions = @($(if ($settings) { $settings.SupportedVmVersions | ForEach-Object { [string]$_ } }))
    vm_folder = [string]$settings.VirtualMachinePath
    disk_folder = [string]$settings.VirtualHardDiskPath
    cluster = $clusterName
    iscsi_service = $iscsiState
    processors = [int]$computer.NumberOfLogicalProcessors
    memory_bytes = [long]$computer.TotalPhysicalMemory
    admin_shares = [bool]$shares.Count
}
