# Script: vm_screen
# What the screen of a running VM shows; one larger than 1920 by 1200 is scaled down by the host.
# Parameters: {"vm_id": guid}
# Value: {width: int, height: int, pixels: base64 of width * height little-endian unsigned 16-bit
#   numbers, row by row from the top; from the highest bit 5 of red, 6 of green, 5 of blue}
# Errors: vm-not-found, no-screen (the host has no picture), wmi-method
# Classes: Msvm_ComputerSystem, Msvm_VideoHead, Msvm_VirtualSystemSettingData,
#   Msvm_VirtualSystemManagementService.GetVirtualSystemThumbnailImage
# Minimum: Windows Server 2012 R2
$system = Get-ComputerSystem $parameters.vm_id
$settings = Get-CimAssociatedInstance -InputObject $system -Association Msvm_SettingsDefineState -ResultClassName Msvm_VirtualSystemSettingData |
    Select-Object -First 1
$head = Get-CimInstance -Namespace $namespace -ClassName Msvm_VideoHead |
    Where-Object { $_.SystemName -eq $system.Name } | Select-Object -First 1
$width = 1024
$height = 768
if ($head -and $head.CurrentHorizontalResolution -gt 0 -and $head.CurrentVerticalResolution -gt 0) {
    $width = [Math]::Min([int]$head.CurrentHorizontalResolution, 1920)
    $height = [Math]::Min([int]$head.CurrentVerticalResolution, 1200)
}
$service = Get-HyperVService Msvm_VirtualSystemManagementService
$result = Invoke-CimMethod -InputObject $service -MethodName GetVirtualSystemThumbnailImage -Arguments @{
    TargetSystem = $settings
    WidthPixels = [uint16]$width
    HeightPixels = [uint16]$height
}
if ($result.ReturnValue -ne 0) { Stop-Script 'wmi-method' 'GetVirtualSystemThumbnailImage' $result.ReturnValue }
$image = [byte[]]$result.ImageData
if ($null -eq $image) { Stop-Script 'no-screen' 'none' }
if ($image.Length -ne 2 * $width * $height) { Stop-Script 'no-screen' ([string]$image.Length) }
[pscustomobject]@{ width = $width; height = $height; pixels = [Convert]::ToBase64String($image) }
