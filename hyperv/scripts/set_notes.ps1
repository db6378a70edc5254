# Script: set_notes
# Sets name and notes of a VM of ours. With notes that do not hold the marker it is not ours any
# more: the last step of a restore.
# Parameters: {"vm_id": guid, "marker": string, "name": string, "notes": string}
# Value: {id: guid}
# Errors: vm-not-found, not-ours
# Minimum: Windows Server 2012 R2
$vm = Get-MarkedVm $parameters.vm_id $parameters.marker
Set-VM -VM $vm -NewVMName ([string]$parameters.name) -Notes ([string]$parameters.notes)
[pscustomobject]@{ id = ([string]$vm.Id).ToLowerInvariant() }
