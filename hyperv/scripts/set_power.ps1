# Script: set_power
# Starts or stops a VM. In the wanted state already: nothing happens. Blocks until it is done.
# Parameters: {"vm_id": guid, "power": "on" | "off" (at once) | "shutdown" (asks the guest)}
# Value: {state: int (VMState)}
# Errors: vm-not-found, and what Start-VM or Stop-VM throws
# Minimum: Windows Server 2012 R2
$vm = Get-TheVm $parameters.vm_id
$power = [string]$parameters.power
if ($power -eq 'on' -and [string]$vm.State -ne 'Running') { Start-VM -VM $vm }
if ($power -eq 'off' -and [string]$vm.State -ne 'Off') { Stop-VM -VM $vm -TurnOff -Force }
if ($power -eq 'shutdown' -and [string]$vm.State -ne 'Off') { Stop-VM -VM $vm -Force }
[pscustomobject]@{ state = [int](Get-TheVm $parameters.vm_id).State }
