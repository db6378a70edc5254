"""What the WS-Management service refuses, with the codes a Windows server answers.

The decimal code is in `WSManFault/@Code`; clients act on it and on nothing else.
Source: wsmerror.h of the Windows SDK; [MS-WSMV] 2.2.4.43.
"""

from __future__ import annotations

from enum import Enum


class WsmanCode(Enum):
    """(code, SOAP subcode, text)."""

    RESOURCE_NOT_FOUND = (
        0x80338000,
        "w:InvalidResourceURI",
        "The resource URI is not one of this service.",
    )
    MUST_UNDERSTAND = (
        0x80338010,
        "s:MustUnderstand",
        "A SOAP header that must be understood is not.",
    )
    HEADER_REQUIRED = (
        0x80338011,
        "a:MessageInformationHeaderRequired",
        "The request does not have all the expected SOAP headers.",
    )
    ACTION_NOT_SUPPORTED = (
        0x80338013,
        "a:ActionNotSupported",
        "The action is not supported by the service.",
    )
    INVALID_SOAP_BODY = (
        0x80338027,
        "w:InvalidBody",
        "The request packet does not have a valid SOAP body.",
    )
    OPERATION_TIMED_OUT = (
        0x80338029,
        "w:TimedOut",
        "The WS-Management service cannot complete the operation within the time specified in"
        " OperationTimeout.",
    )
    ENCODING_LIMIT = (
        0x80338035,
        "w:EncodingLimit",
        "The encoding of the request exceeds an internal encoding limit: MaxEnvelopeSize.",
    )
    INVALID_OPTIONS = (
        0x80338039,
        "w:InvalidOptions",
        "One or more options are not valid.",
    )
    SCHEMA_VALIDATION = (
        0x80338041,
        "w:SchemaValidationError",
        "The SOAP XML in the message does not match the corresponding XML schema definition.",
    )
    INVALID_XML = (0x80338043, "w:SchemaValidationError", "The request contains invalid XML.")
    MISSING_SELECTORS = (
        0x8033805A,
        "w:InvalidSelectors",
        "The request did not contain all required selectors.",
    )
    SHELL_NOT_FOUND = (
        0x8033805B,
        "w:InvalidSelectors",
        "The request for the Windows Remote Shell failed because the shell was not found on the"
        " server. Possible causes are: the specified ShellId is incorrect or the shell no longer"
        " exists on the server.",
    )
    INVALID_TIMEOUT = (
        0x80338081,
        "w:InvalidTimeout",
        "The OperationTimeout header is not a valid duration.",
    )
    MAX_SHELLS = (
        0x803381A5,
        "w:QuotaLimit",
        "This user is allowed a maximum number of concurrent shells, which has been exceeded.",
    )
    MAX_OPERATIONS = (
        0x803381A6,
        "w:QuotaLimit",
        "This user is allowed a maximum number of concurrent operations, which has been exceeded.",
    )
    INVALID_PARAMETER = (87, "w:InternalError", "The parameter is incorrect.")
    NO_DATA = (232, "w:InternalError", "The pipe is being closed.")
    ABORTED = (
        995,
        "w:InternalError",
        "The I/O operation has been aborted because of either a thread exit or an application"
        " request.",
    )
    ACCESS_DENIED = (5, "w:AccessDenied", "Access is denied.")

    @property
    def number(self) -> int:
        return self.value[0]

    @property
    def subcode(self) -> str:
        return self.value[1]

    @property
    def text(self) -> str:
        return self.value[2]

    @property
    def by_sender(self) -> bool:
        """Whether the SOAP code is Sender; else Receiver."""
        return not self.subcode.startswith(("w:InternalError", "w:TimedOut"))


class WsmanFaultError(Exception):
    """The request is answered with a fault."""

    def __init__(self, code: WsmanCode, detail: str = "") -> None:
        super().__init__(f"{code.text} {detail}".strip())
        self.code = code
