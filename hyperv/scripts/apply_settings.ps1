# Script: apply_settings
# Gives a VM of ours the settings of the captured one that `new_vm` has no parameters for. Each
# group is tried by itself: a host that does not know one, or refuses it, is told of, no more.
# Parameters: {"vm_id": guid, "marker": string, "start_action", "start_delay_s", "stop_action",
#   "checkpoint_type": int (as `capture_vm` has them), "automatic_checkpoints": bool,
#   "processor": {"reserve", "limit", "weight": int}, "memory": {"buffer", "weight": int},
#   "adapters": [{"mac_spoofing", "dhcp_guard", "router_guard", "device_naming": bool}] (in the
#     order of `new_vm`)}
# Value: {refused: [string]} ("actions", "checkpoints", "processor", "memory", "adapters")
# Errors: vm-not-found, not-ours
# Minimum: Windows Server 2012 R2 (checkpoints: 2016, automatic ones: 2019)
$vm = Get-MarkedVm $parameters.vm_id $parameters.marker
$refused = @()
try {
    Set-VM -VM $vm -AutomaticStartAction ([int]$parameters.start_action) -AutomaticStartDelay ([int]$parameters.start_delay_s) -AutomaticStopAction ([int]$parameters.stop_action)
} catch { $refused += 'actions' }
try {
    $can = (Get-Command -Name Set-VM).Parameters
    if ($can.ContainsKey('CheckpointType')) { Set-VM -VM $vm -CheckpointType ([int]$parameters.checkpoint_type) }
    if ($can.ContainsKey('AutomaticCheckpointsEnabled')) {
        Set-VM -VM $vm -AutomaticCheckpointsEnabled ([bool]$parameters.automatic_checkpoints)
    }
} catch { $refused += 'checkpoints' }
try {
    Set-VMProcessor -VM $vm -Reserve ([int]$parameters.processor.reserve) -Maximum ([int]$parameters.processor.limit) -RelativeWeight ([int]$parameters.processor.weight)
} catch { $refused += 'processor' }
try {
    Set-VMMemory -VM $vm -Priority ([int]$parameters.memory.weight)
    if ((Get-VMMemory -VM $vm).DynamicMemoryEnabled) { Set-VMMemory -VM $vm -Buffer ([int]$parameters.memory.buffer) }
} catch { $refused += 'memory' }
try {
    $words = @{ $true = 'On'; $false = 'Off' }
    $added = @(Get-VMNetworkAdapter -VM $vm)
    $wanted = @($parameters.adapters)
    for ($at = 0; $at -lt $wanted.Count; $at++) {
        $setting = @{
            VMNetworkAdapter = $added[$at]
            MacAddressSpoofing = $words[[bool]$wanted[$at].mac_spoofing]
            DhcpGuard = $words[[bool]$wanted[$at].dhcp_guard]
            RouterGuard = $words[[bool]$wanted[$at].router_guard]
        }
        $can = (Get-Command -Name Set-VMNetworkAdapter).Parameters
        if ($can.ContainsKey('DeviceNaming') -and -not $added[$at].IsLegacy) {
            $setting['DeviceNaming'] = $words[[bool]$wanted[$at].device_naming]
        }
        Set-VMNetworkAdapter @setting
    }
} catch { $refused += 'adapters' }
[pscustomobject]@{ refused = @($refused) }
