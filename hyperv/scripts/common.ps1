# Sent in front of every script: what they share.
# Defines no data of its own; reads nothing from the host until it is called.
$namespace = 'root\virtualization\v2'

function Stop-Script {
    param($Code, $Message, $WmiReturn)

    $failure = New-Object System.InvalidOperationException ([string]$Message)
    $failure.Data['code'] = [string]$Code
    $failure.Data['wmi_return'] = [long]$WmiReturn
    throw $failure
}

function Get-HyperVService {
    param($ClassName)

    Get-CimInstance -Namespace $namespace -ClassName $ClassName | Select-Object -First 1
}

# The VM by its id: names are neither unique nor free of wildcards.
function Get-ComputerSystem {
    param($Id)

    $wanted = ([guid]$Id).ToString().ToUpperInvariant()
    $found = Get-CimInstance -Namespace $namespace -ClassName Msvm_ComputerSystem |
        Where-Object { $_.Name -eq $wanted } | Select-Object -First 1
    if (-not $found) { Stop-Script 'vm-not-found' $wanted }
    $found
}

function Get-TheVm {
    param($Id)

    $wanted = [guid]$Id
    $found = Get-VM | Where-Object { $_.Id -eq $wanted } | Select-Object -First 1
    if (-not $found) { Stop-Script 'vm-not-found' ([string]$wanted) }
    $found
}

function Get-ByInstanceId {
    param($ClassName, $InstanceId, $MissingCode)

    $found = Get-CimInstance -Namespace $namespace -ClassName $ClassName |
        Where-Object { $_.InstanceID -eq $InstanceId } | Select-Object -First 1
    if (-not $found) { Stop-Script $MissingCode ([string]$InstanceId) }
    $found
}

# Calls a method that may answer with a job. Returns its InstanceID, '' when it is done already.
function Start-Method {
    param($Target, $Method, $Arguments)

    $result = Invoke-CimMethod -InputObject $Target -MethodName $Method -Arguments $Arguments
    if ($result.ReturnValue -eq 0) { return '' }
    if ($result.ReturnValue -eq 4096) { return [string]$result.Job.InstanceID }
    Stop-Script 'wmi-method' $Method $result.ReturnValue
}

# Sets a property also where its class calls it read-only: the methods that take the instance decide.
function Set-InstanceProperty {
    param($Instance, $Name, $Value)

    $Instance.CimInstanceProperties[$Name].Value = $Value
}

# An instance as the text that methods take for embedded instances.
function Get-EmbeddedText {
    param($Instance)

    $serializer = [Microsoft.Management.Infrastructure.Serialization.CimSerializer]::Create()
    $options = [Microsoft.Management.Infrastructure.Serialization.InstanceSerializationOptions]::None
    [Text.Encoding]::Unicode.GetString($serializer.Serialize($Instance, $options))
}

function Get-IsoTime {
    param($Time)

    if ($null -eq $Time) { return '' }
    ([datetime]$Time).ToUniversalTime().ToString('o')
}

# What Get-VHD knows of a file; `error` says why it knows nothing.
function Get-DiskFile {
    param($Path)

    $file = [pscustomobject]@{
        path = [string]$Path
        format = ''
        type = ''
        virtual_disk_id = ''
        size_bytes = [long]0
        file_size_bytes = [long]0
        logical_sector_bytes = 0
        physical_sector_bytes = 0
        parent_path = ''
        error = ''
    }
    try {
        $vhd = Get-VHD -Path $Path
        $file.format = ([string]$vhd.VhdFormat).ToLowerInvariant()
        $file.type = ([string]$vhd.VhdType).ToLowerInvariant()
        $file.virtual_disk_id = ([string]$vhd.DiskIdentifier).ToLowerInvariant()
        $file.size_bytes = [long]$vhd.Size
        $file.file_size_bytes = [long]$vhd.FileSize
        $file.logical_sector_bytes = [int]$vhd.LogicalSectorSize
        $file.physical_sector_bytes = [int]$vhd.PhysicalSectorSize
        $file.parent_path = [string]$vhd.ParentPath
    } catch {
        $file.error = [string]$_.Exception.Message
    }
    $file
}

# The file and its parents, the leaf first.
function Get-DiskChain {
    param($Path)

    $next = [string]$Path
    $depth = 0
    while ($next -and $depth -lt 64) {
        $file = Get-DiskFile $next
        $file
        $next = $file.parent_path
        $depth = $depth + 1
    }
}

# The virtual hard disks of a VM's or a checkpoint's settings.
function Get-StorageAllocation {
    param($Settings)

    Get-CimAssociatedInstance -InputObject $Settings -ResultClassName Msvm_StorageAllocationSettingData |
        Where-Object { $_.ResourceType -eq 31 -and $_.ResourceSubType -eq 'Microsoft:Hyper-V:Virtual Hard Disk' }
}

# Where our own files lie on the host: one folder per marker.
function Get-MarkedFolder {
    param($Kind, $Marker)

    if ($Marker -notmatch '^holdfast-[0-9A-Za-z-]{1,90}$') { Stop-Script 'bad-marker' ([string]$Marker) }
    Join-Path (Join-Path $env:ProgramData 'Holdfast') (Join-Path $Kind $Marker)
}

# The VM, but only when it carries our marker: what is removed or overwritten must be ours.
function Get-MarkedVm {
    param($Id, $Marker)

    $vm = Get-TheVm $Id
    if (-not $Marker -or ([string]$vm.Notes).IndexOf([string]$Marker, [StringComparison]::Ordinal) -lt 0) {
        Stop-Script 'not-ours' ([string]$vm.Id)
    }
    $vm
}

# Secure Boot of a generation 2 VM. Before Windows Server 2016 there is one template only, which is
# called MicrosoftWindows since, and no way to name it.
function Set-SecureBoot {
    param($Vm, $Wanted, $Template)

    $setting = @{ VM = $Vm; EnableSecureBoot = 'Off' }
    if ($Wanted) {
        $setting['EnableSecureBoot'] = 'On'
        $known = (Get-Command -Name Set-VMFirmware).Parameters.ContainsKey('SecureBootTemplate')
        if ($known -or [string]$Template -ne 'MicrosoftWindows') { $setting['SecureBootTemplate'] = [string]$Template }
    }
    Set-VMFirmware @setting
}
