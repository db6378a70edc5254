# Script: name_checkpoint
# Gives a checkpoint our marker as its name, so that it is known as ours whatever happens.
# Parameters: {"checkpoint_id": InstanceID, "marker": string}
# Value: {job_id: InstanceID or ""}
# Errors: checkpoint-not-found, wmi-method
# Classes: Msvm_VirtualSystemSettingData, Msvm_VirtualSystemManagementService.ModifySystemSettings
# Minimum: Windows Server 2016
$settings = Get-ByInstanceId Msvm_VirtualSystemSettingData $parameters.checkpoint_id 'checkpoint-not-found'
Set-InstanceProperty $settings 'ElementName' ([string]$parameters.marker)
$service = Get-HyperVService Msvm_VirtualSystemManagementService
$job = Start-Method $service ModifySystemSettings @{ SystemSettings = Get-EmbeddedText $settings }
[pscustomobject]@{ job_id = [string]$job }
