# Script: configure_vm
# Sets processors, memory, secure boot, the disk to boot from and the switches of a VM that is off,
# as a recovery point has them. Whose VM it is does not matter: a roll-back is of somebody's own.
# Parameters: {"vm_id": guid, "processors": int, "nested": bool,
#   "memory": {"startup_bytes", "minimum_bytes", "maximum_bytes": int, "dynamic": bool},
#   "secure_boot": bool, "secure_boot_template": string ("" with generation 1),
#   "boot_disk": null | {"controller": "ide" | "scsi", "controller_number", "location": int}
#     (generation 2), "adapters": [{"id": string, "switch_name": string ("": not connected)}]}
# Value: {id: guid}
# Errors: vm-not-found, vm-not-off, switch-not-found (before anything is changed)
# Minimum: Windows Server 2012 R2 (nested: 2016)
$vm = Get-TheVm $parameters.vm_id
if ([string]$vm.State -ne 'Off') { Stop-Script 'vm-not-off' ([string]$vm.State) }
foreach ($adapter in @($parameters.adapters)) {
    if ($adapter.switch_name) {
        $switch = Get-VMSwitch | Where-Object { $_.Name -eq [string]$adapter.switch_name } | Select-Object -First 1
        if (-not $switch) { Stop-Script 'switch-not-found' ([string]$adapter.switch_name) }
    }
}
Set-VMProcessor -VM $vm -Count ([int]$parameters.processors)
if ((Get-Command -Name Set-VMProcessor).Parameters.ContainsKey('ExposeVirtualizationExtensions')) {
    Set-VMProcessor -VM $vm -ExposeVirtualizationExtensions ([bool]$parameters.nested)
}
$memory = @{ VM = $vm; StartupBytes = [long]$parameters.memory.startup_bytes; DynamicMemoryEnabled = [bool]$parameters.memory.dynamic }
if ($parameters.memory.dynamic) {
    $memory['MinimumBytes'] = [long]$parameters.memory.minimum_bytes
    $memory['MaximumBytes'] = [long]$parameters.memory.maximum_bytes
}
Set-VMMemory @memory
if ([int]$vm.Generation -eq 2) {
    Set-SecureBoot $vm $parameters.secure_boot $parameters.secure_boot_template
    if ($parameters.boot_disk) {
        $drive = Get-VMHardDiskDrive -VM $vm | Where-Object {
            [string]$_.ControllerType -eq [string]$parameters.boot_disk.controller -and
            [int]$_.ControllerNumber -eq [int]$parameters.boot_disk.controller_number -and
            [int]$_.ControllerLocation -eq [int]$parameters.boot_disk.location
        } | Select-Object -First 1
        if ($drive) { Set-VMFirmware -VM $vm -FirstBootDevice $drive }
    }
}
foreach ($wanted in @($parameters.adapters)) {
    $adapter = Get-VMNetworkAdapter -VM $vm | Where-Object { [string]$_.Id -eq [string]$wanted.id } | Select-Object -First 1
    if (-not $adapter) { continue }
    if ($wanted.switch_name) {
        Connect-VMNetworkAdapter -VMNetworkAdapter $adapter -SwitchName ([string]$wanted.switch_name)
    } else {
        Disconnect-VMNetworkAdapter -VMNetworkAdapter $adapter
    }
}
[pscustomobject]@{ id = ([string]$vm.Id).ToLowerInvariant() }
