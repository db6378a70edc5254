# Script: vm_state
# How a VM stands now: power, what the host is doing with it, sign of life, addresses.
# Parameters: {"vm_id": guid}
# Value: {id: guid, name, state: int (VMState), operational_status: [int] (32768 creating, 32770
#   deleting a checkpoint, 32772 merging disks, ...), heartbeat: int (VMHeartbeatStatus; 5 and 6:
#   up), addresses: [string], guest_name: string (what the guest calls itself; "" when its data
#   exchange service says nothing), disk_paths: [string] (what it writes to now), uptime_s: int}
# Errors: vm-not-found
# Classes: Msvm_ComputerSystem, Msvm_KvpExchangeComponent; cmdlets Get-VM, Get-VMHardDiskDrive, Get-VMNetworkAdapter
# Minimum: Windows Server 2012 R2
$vm = Get-TheVm $parameters.vm_id
$system = Get-ComputerSystem $parameters.vm_id
$exchange = Get-CimInstance -Namespace $namespace -ClassName Msvm_KvpExchangeComponent |
    Where-Object { $_.SystemName -eq $system.Name } | Select-Object -First 1
$guest = ''
foreach ($item in @($exchange.GuestIntrinsicExchangeItems | Where-Object { $_ })) {
    $fields = @(([xml]$item).INSTANCE.PROPERTY)
    $name = $fields | Where-Object { $_.NAME -eq 'Name' } | Select-Object -First 1
    $data = $fields | Where-Object { $_.NAME -eq 'Data' } | Select-Object -First 1
    if ([string]$name.VALUE -eq 'FullyQualifiedDomainName') { $guest = [string]$data.VALUE }
}
[pscustomobject]@{
    id = ([string]$vm.Id).ToLowerInvariant()
    name = [string]$vm.Name
    state = [int]$vm.State
    operational_status = @($system.OperationalStatus | Where-Object { $null -ne $_ } | ForEach-Object { [int]$_ })
    heartbeat = [int]$vm.Heartbeat
    addresses = @(Get-VMNetworkAdapter -VM $vm | ForEach-Object { $_.IPAddresses } | ForEach-Object { [string]$_ })
    guest_name = $guest
    disk_paths = @(Get-VMHardDiskDrive -VM $vm | ForEach-Object { [string]$_.Path })
    uptime_s = [int]$vm.Uptime.TotalSeconds
}
