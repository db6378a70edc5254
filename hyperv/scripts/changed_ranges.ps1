# Script: changed_ranges
# What has changed in a region of a frozen file's virtual disk since an earlier change tracking id.
# Parameters: {"path": string, "limit_id": string, "offset": int, "length": int} (bytes)
#   length must be less than the disk's size.
# Value: {processed_bytes: int, count: int, ranges: base64 of `count` pairs of little-endian
#   unsigned 64-bit numbers (offset, length in bytes of the virtual disk), job_id: InstanceID or ""}
#   With a job_id the ranges are not there yet: wait for the job, then ask again.
# Errors: wmi-method (wmi_return 32773, 32779, 32768: the id or the file is not known)
# Classes: Msvm_ImageManagementService.GetVirtualDiskChanges
# Minimum: Windows Server 2016
$service = Get-HyperVService Msvm_ImageManagementService
$result = Invoke-CimMethod -InputObject $service -MethodName GetVirtualDiskChanges -Arguments @{
    Path = [string]$parameters.path
    LimitId = [string]$parameters.limit_id
    TargetSnapshotId = ''
    ByteOffset = [uint64]$parameters.offset
    ByteLength = [uint64]$parameters.length
}
if ($result.ReturnValue -eq 4096) {
    return [pscustomobject]@{
        processed_bytes = [long]0
        count = 0
        ranges = ''
        job_id = [string]$result.Job.InstanceID
    }
}
if ($result.ReturnValue -ne 0) { Stop-Script 'wmi-method' 'GetVirtualDiskChanges' $result.ReturnValue }
$offsets = @($result.ChangedByteOffsets | Where-Object { $null -ne $_ })
$lengths = @($result.ChangedByteLengths | Where-Object { $null -ne $_ })
$memory = New-Object IO.MemoryStream
$writer = New-Object IO.BinaryWriter $memory
for ($i = 0; $i -lt $offsets.Count; $i++) {
    $writer.Write([uint64]$offsets[$i])
    $writer.Write([uint64]$lengths[$i])
}
$writer.Flush()
[pscustomobject]@{
    processed_bytes = [long]$result.ProcessedByteLength
    count = [int]$offsets.Count
    ranges = [Convert]::ToBase64String($memory.ToArray())
    job_id = ''
}
