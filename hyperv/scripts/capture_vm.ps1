# Script: capture_vm
# All settings of a VM that it takes to build it again elsewhere, or nothing but what they name.
# Parameters: {"vm_id": guid}
# Value: {id, name, notes: string, generation: int, version: string,
#   identity: {bios_guid, bios_serial, board_serial, chassis_serial, chassis_asset_tag: string},
#   processor: {count, reserve, limit, weight: int, nested: bool, compatibility: bool},
#   memory: {startup_bytes, minimum_bytes, maximum_bytes: int, dynamic: bool, buffer, weight: int},
#   firmware: null (generation 1) | {secure_boot: bool, secure_boot_template: string,
#     secure_boot_template_id: string, console_mode: int, pause_after_boot_failure: bool,
#     boot_order: [{type: int (1 drive, 2 network, 3 file), path: string (file), attachment: string}]},
#   bios: null (generation 2) | {startup_order: [int (BootDevice)], num_lock: bool},
#   security: {tpm, shielded, encrypt_state: bool},
#   checkpoint_type: int, automatic_checkpoints: bool, start_action: int, start_delay_s: int,
#   stop_action: int, critical_error_action: int, clustered: bool,
#   adapters: [{id, name: string, legacy: bool, mac: 12 hex digits, dynamic_mac: bool,
#     switch_name, switch_id: string, connected: bool, vlan_mode: int, vlan_id: int,
#     mac_spoofing, dhcp_guard, router_guard, device_naming: bool, addresses: [string]}],
#   controllers: [{type: "ide" | "scsi", number: int}],
#   dvds: [{controller: "ide" | "scsi", controller_number, location: int, path: string}],
#   integration: [{id: guid, enabled: bool}]}
# Classes: Msvm_ComputerSystem, Msvm_VirtualSystemSettingData (VirtualSystemType ...:System:Realized)
# Minimum: Windows Server 2012 R2 (fields that it does not know are 0, false or "")
$vm = Get-TheVm $parameters.vm_id
$system = Get-ComputerSystem $parameters.vm_id
$settings = Get-CimAssociatedInstance -InputObject $system -Association Msvm_SettingsDefineState -ResultClassName Msvm_VirtualSystemSettingData |
    Select-Object -First 1
$processor = Get-VMProcessor -VM $vm
$memory = Get-VMMemory -VM $vm
$firmware = $null
$bios = $null
if ([int]$vm.Generation -eq 2) {
    $found = Get-VMFirmware -VM $vm
    $order = @(foreach ($entry in @($found.BootOrder)) {
        [pscustomobject]@{
            type = [int]$entry.BootType
            path = [string]$entry.FirmwarePath
            attachment = [string]$entry.Device.Id
        }
    })
    $firmware = [pscustomobject]@{
        secure_boot = [bool](([string]$found.SecureBoot) -eq 'On')
        secure_boot_template = [string]$found.SecureBootTemplate
        secure_boot_template_id = [string]$found.SecureBootTemplateId
        console_mode = [int]$found.ConsoleMode
        pause_after_boot_failure = [bool](([string]$found.PauseAfterBootFailure) -eq 'On')
        boot_order = $order
    }
} else {
    $found = Get-VMBios -VM $vm
    $bios = [pscustomobject]@{
        startup_order = @($found.StartupOrder | ForEach-Object { [int]$_ })
        num_lock = [bool]$found.NumLockEnabled
    }
}
$security = $null
if (Get-Command -Name Get-VMSecurity -ErrorAction SilentlyContinue) {
    $security = Get-VMSecurity -VM $vm -ErrorAction SilentlyContinue
}
$adapters = @(foreach ($adapter in @(Get-VMNetworkAdapter -VM $vm)) {
    $vlan = Get-VMNetworkAdapterVlan -VMNetworkAdapter $adapter
    [pscustomobject]@{
        id = [string]$adapter.Id
        name = [string]$adapter.Name
        legacy = [bool]$adapter.IsLegacy
        mac = [string]$adapter.MacAddress
        dynamic_mac = [bool]$adapter.DynamicMacAddressEnabled
        switch_name = [string]$adapter.SwitchName
        switch_id = [string]$adapter.SwitchId
        connected = [bool]$adapter.Connected
        vlan_mode = [int]$vlan.OperationMode
        vlan_id = [int]$vlan.AccessVlanId
        mac_spoofing = [bool](([string]$adapter.MacAddressSpoofing) -eq 'On')
        dhcp_guard = [bool](([string]$adapter.DhcpGuard) -eq 'On')
        router_guard = [bool](([string]$adapter.RouterGuard) -eq 'On')
        device_naming = [bool](([string]$adapter.DeviceNaming) -eq 'On')
        addresses = @($adapter.IPAddresses | ForEach-Object { [string]$_ })
    }
})
$controllers = @(
    if ([int]$vm.Generation -eq 1) {
        foreach ($controller in @(Get-VMIdeController -VM $vm)) {
            [pscustomobject]@{ type = 'ide'; number = [int]$controller.ControllerNumber }
        }
    }
    foreach ($controller in @(Get-VMScsiController -VM $vm)) {
        [pscustomobject]@{ type = 'scsi'; number = [int]$controller.ControllerNumber }
    }
)
$dvds = @(foreach ($drive in @(Get-VMDvdDrive -VM $vm)) {
    [pscustomobject]@{
        controller = ([string]$drive.ControllerType).ToLowerInvariant()
        controller_number = [int]$drive.ControllerNumber
        location = [int]$drive.ControllerLocation
        path = [string]$drive.Path
    }
})
$integration = @(foreach ($service in @(Get-VMIntegrationService -VM $vm)) {
    [pscustomobject]@{
        id = ([string]$service.Id).Split('\')[-1].ToLowerInvariant()
        enabled = [bool]$service.Enabled
    }
})
[pscustomobject]@{
    id = ([string]$vm.Id).ToLowerInvariant()
    name = [string]$vm.Name
    notes = [string]$vm.Notes
    generation = [int]$vm.Generation
    version = [string]$vm.Version
    identity = [pscustomobject]@{
        bios_guid = [string]$settings.BIOSGUID
        bios_serial = [string]$settings.BIOSSerialNumber
        board_serial = [string]$settings.BaseBoardSerialNumber
        chassis_serial = [string]$settings.ChassisSerialNumber
        chassis_asset_tag = [string]$settings.ChassisAssetTag
    }
    processor = [pscustomobject]@{
        count = [int]$processor.Count
        reserve = [int]$processor.Reserve
        limit = [int]$processor.Maximum
        weight = [int]$processor.RelativeWeight
        nested = [bool]$processor.ExposeVirtualizationExtensions
        compatibility = [bool]$processor.CompatibilityForMigrationEnabled
    }
    memory = [pscustomobject]@{
        startup_bytes = [long]$memory.Startup
        minimum_bytes = [long]$memory.Minimum
        maximum_bytes = [long]$memory.Maximum
        dynamic = [bool]$memory.DynamicMemoryEnabled
        buffer = [int]$memory.Buffer
        weight = [int]$memory.Priority
    }
    firmware = $firmware
    bios = $bios
    security = [pscustomobject]@{
        tpm = [bool]$security.TpmEnabled
        shielded = [bool]$security.Shielded
        encrypt_state = [bool]$security.EncryptStateAndVmMigrationTraffic
    }
    checkpoint_type = [int]$vm.CheckpointType
    automatic_checkpoints = [bool]$vm.AutomaticCheckpointsEnabled
    start_action = [int]$vm.AutomaticStartAction
    start_delay_s = [int]$vm.AutomaticStartDelay
    stop_action = [int]$vm.AutomaticStopAction
    critical_error_action = [int]$vm.AutomaticCriticalErrorAction
    clustered = [bool]$vm.IsClustered
    adapters = $adapters
    controllers = $controllers
    dvds = $dvds
    integration = $integration
}
