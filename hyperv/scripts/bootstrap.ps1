$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
$WarningPreference = 'SilentlyContinue'
$utf8 = New-Object Text.UTF8Encoding $false
$status = 0
try {
    $text = @($input) -join ''
    if (-not $text) { $text = [Console]::In.ReadToEnd() }
    $packed = [Convert]::FromBase64String($text)
    $request = $utf8.GetString($packed) | ConvertFrom-Json
    $parameters = $request.parameters
    $value = & ([ScriptBlock]::Create($request.script))
    $answer = [pscustomobject]@{ ok = $true; value = $value }
} catch {
    $status = 1
    $cause = $_.Exception
    $answer = [pscustomobject]@{
        ok = $false
        error = [pscustomobject]@{
            code = [string]$cause.Data['code']
            wmi_return = [long]$cause.Data['wmi_return']
            type = $cause.GetType().FullName
            hresult = [long]$cause.HResult
            message = [string]$cause.Message
            category = [string]$_.CategoryInfo.Category
            id = [string]$_.FullyQualifiedErrorId
            line = [int]$_.InvocationInfo.ScriptLineNumber
        }
    }
}
$text = ConvertTo-Json -InputObject $answer -Depth 12 -Compress
$bytes = $utf8.GetBytes($text)
$memory = New-Object IO.MemoryStream
$gzip = New-Object IO.Compression.GZipStream $memory, ([IO.Compression.CompressionMode]::Compress)
$gzip.Write($bytes, 0, $bytes.Length)
$gzip.Close()
[Console]::Out.WriteLine('<<holdfast:1:' + [Convert]::ToBase64String($memory.ToArray()) + ':holdfast>>')
exit $status
