"""Fixed newstyle negotiation as a state machine without input or output.

The connection hands in whole options; each answer says what to send and what comes next. So the
same code runs under tests, in clear text and inside TLS.

Invariants: an answer is never larger than the exports' names and descriptions make it; every
unknown option is refused and leaves the negotiation usable; what was negotiated before STARTTLS
is forgotten.

Source: doc/proto.md, "Fixed newstyle negotiation", "Option types", "Metadata querying".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import Struct

from nbd_server import protocol
from nbd_server.backend import Export, Exports, find_export
from nbd_server.errors import ProtocolError
from nbd_server.options import (
    OptionDataError,
    parse_context_query,
    parse_info_request,
)
from nbd_server.protocol import HandshakeFlag, Info, Option, OptionReply, TransmissionFlag

_U16 = Struct(">H")
_U32 = Struct(">I")
_INFO_EXPORT = Struct(">HQH")  # Info.EXPORT, size, transmission flags
_INFO_BLOCK_SIZE = Struct(">HIII")  # Info.BLOCK_SIZE, minimum, preferred, maximum payload

GREETING = protocol.GREETING.pack(
    protocol.NBD_MAGIC,
    protocol.OPTION_MAGIC,
    HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES,
)

# A plain integer: the complement of an IntFlag has only the bits that the flag knows.
_CLIENT_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)


class TlsMode(Enum):
    OFF = "off"  # STARTTLS is refused
    OPTIONAL = "optional"
    REQUIRED = "required"  # everything but STARTTLS and ABORT is refused in clear text


class Next(Enum):
    OPTION = "option"
    START_TLS = "start-tls"  # after the answer was sent in clear text
    TRANSMIT = "transmit"
    CLOSE = "close"


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What was negotiated for the transmission phase."""

    export: Export
    structured: bool
    allocation: bool  # BLOCK_STATUS may be asked for base:allocation


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    reply: bytes
    next: Next = Next.OPTION
    session: Session | None = None  # set exactly with Next.TRANSMIT


def transmission_flags(export: Export, *, structured: bool) -> TransmissionFlag:
    flags = (
        TransmissionFlag.HAS_FLAGS
        | TransmissionFlag.SEND_FLUSH
        | TransmissionFlag.SEND_FUA
        | TransmissionFlag.CAN_MULTI_CONN
        | TransmissionFlag.SEND_CACHE
    )
    if structured:
        flags |= TransmissionFlag.SEND_DF
    if export.backend.read_only:
        return flags | TransmissionFlag.READ_ONLY
    return (
        flags
        | TransmissionFlag.SEND_TRIM
        | TransmissionFlag.SEND_WRITE_ZEROES
        | TransmissionFlag.SEND_FAST_ZERO
    )


def option_reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    header = protocol.OPTION_REPLY.pack(protocol.OPTION_REPLY_MAGIC, option, kind, len(data))
    return header + data


class Handshake:
    """One negotiation; belongs to one connection and one thread."""

    def __init__(self, exports: Exports, tls_mode: TlsMode = TlsMode.OFF) -> None:
        self._exports = exports
        self._tls_mode = tls_mode
        self._secure = False
        self._no_zeroes = False
        self._structured = False
        self._allocation_for: Export | None = None
        self._handlers: dict[int, Callable[[bytes], Answer]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.STARTTLS: self._start_tls,
            Option.INFO: self._info,
            Option.GO: self._go,
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._list_meta_context,
            Option.SET_META_CONTEXT: self._set_meta_context,
        }

    def client_flags(self, flags: int) -> None:
        """Raises ProtocolError for a bit that was not offered."""
        if flags & ~_CLIENT_FLAGS:
            raise ProtocolError(f"client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)

    def secured(self) -> None:
        """The TLS handshake succeeded: begin again, inside it."""
        self._secure = True
        self._structured = False
        self._allocation_for = None

    def option(self, option: int, data: bytes) -> Answer:
        if self._clear_text_refused(option):
            if option == Option.EXPORT_NAME:  # has no error reply
                return Answer(reply=b"", next=Next.CLOSE)
            return _refuse(option, OptionReply.ERR_TLS_REQD, "use STARTTLS first")
        handler = self._handlers.get(option)
        if handler is None:
            return _refuse(option, OptionReply.ERR_UNSUP, "unknown option")
        try:
            return handler(data)
        except OptionDataError as error:
            return _refuse(option, OptionReply.ERR_INVALID, str(error))

    def too_big(self, option: int) -> Answer:
        """The data of this option were longer than the connection was willing to keep."""
        if option == Option.EXPORT_NAME:
            return Answer(reply=b"", next=Next.CLOSE)
        if option not in self._handlers:
            return _refuse(option, OptionReply.ERR_UNSUP, "unknown option")
        return _refuse(option, OptionReply.ERR_TOO_BIG, "too much data")

    def _clear_text_refused(self, option: int) -> bool:
        if self._tls_mode is not TlsMode.REQUIRED or self._secure:
            return False
        return option not in (Option.STARTTLS, Option.ABORT)

    def _session(self, export: Export) -> Session:
        return Session(
            export=export,
            structured=self._structured,
            allocation=self._structured and self._allocation_for is export,
        )

    def _export_name(self, data: bytes) -> Answer:
        export = find_export(self._exports, data)
        if export is None:  # closing is the only way to refuse
            return Answer(reply=b"", next=Next.CLOSE)
        flags = transmission_flags(export, structured=self._structured)
        reply = protocol.EXPORT_NAME_REPLY.pack(export.backend.size_bytes, flags)
        if not self._no_zeroes:
            reply += protocol.EXPORT_NAME_PADDING
        return Answer(reply=reply, next=Next.TRANSMIT, session=self._session(export))

    def _abort(self, data: bytes) -> Answer:
        return Answer(reply=option_reply(Option.ABORT, OptionReply.ACK), next=Next.CLOSE)

    def _list(self, data: bytes) -> Answer:
        _no_data(data)
        replies = []
        for name, export in self._exports.items():
            entry = _U32.pack(len(name)) + name + export.description.encode()
            replies.append(option_reply(Option.LIST, OptionReply.SERVER, entry))
        replies.append(option_reply(Option.LIST, OptionReply.ACK))
        return Answer(reply=b"".join(replies))

    def _start_tls(self, data: bytes) -> Answer:
        _no_data(data)
        if self._secure:
            return _refuse(Option.STARTTLS, OptionReply.ERR_INVALID, "TLS is active already")
        if self._tls_mode is TlsMode.OFF:
            return _refuse(Option.STARTTLS, OptionReply.ERR_POLICY, "TLS is not configured")
        ack = option_reply(Option.STARTTLS, OptionReply.ACK)
        return Answer(reply=ack, next=Next.START_TLS)

    def _structured_reply(self, data: bytes) -> Answer:
        _no_data(data)
        self._structured = True
        return Answer(reply=option_reply(Option.STRUCTURED_REPLY, OptionReply.ACK))

    def _info(self, data: bytes) -> Answer:
        return self._describe(Option.INFO, data)

    def _go(self, data: bytes) -> Answer:
        return self._describe(Option.GO, data)

    def _describe(self, option: Option, data: bytes) -> Answer:
        request = parse_info_request(data)
        export = find_export(self._exports, request.name)
        if export is None:
            return _refuse(option, OptionReply.ERR_UNKNOWN, "no such export")
        infos = self._infos(export, request.info_types)
        reply = b"".join([option_reply(option, OptionReply.INFO, info) for info in infos])
        reply += option_reply(option, OptionReply.ACK)
        if option is Option.INFO:
            return Answer(reply=reply)
        return Answer(reply=reply, next=Next.TRANSMIT, session=self._session(export))

    def _infos(self, export: Export, wanted: frozenset[int]) -> list[bytes]:
        """EXPORT always, the rest on demand; unknown types are ignored."""
        backend = export.backend
        flags = transmission_flags(export, structured=self._structured)
        infos = [_INFO_EXPORT.pack(Info.EXPORT, backend.size_bytes, flags)]
        if Info.NAME in wanted:
            infos.append(_U16.pack(Info.NAME) + export.name.encode())
        if Info.DESCRIPTION in wanted and export.description:
            infos.append(_U16.pack(Info.DESCRIPTION) + export.description.encode())
        if Info.BLOCK_SIZE in wanted:
            preferred = backend.preferred_block_bytes
            infos.append(
                _INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, preferred, protocol.MAX_PAYLOAD_BYTES)
            )
        return infos

    def _list_meta_context(self, data: bytes) -> Answer:
        option = Option.LIST_META_CONTEXT
        if not self._structured:
            return _refuse(option, OptionReply.ERR_INVALID, "needs structured replies")
        query = parse_context_query(data)
        if find_export(self._exports, query.name) is None:
            return _refuse(option, OptionReply.ERR_UNKNOWN, "no such export")
        wildcards = (protocol.ALLOCATION_CONTEXT, b"base:")
        listed = not query.queries or any(text in wildcards for text in query.queries)
        return _contexts(option, 0 if listed else None)

    def _set_meta_context(self, data: bytes) -> Answer:
        option = Option.SET_META_CONTEXT
        self._allocation_for = None  # an earlier choice ends even when this one fails
        if not self._structured:
            return _refuse(option, OptionReply.ERR_INVALID, "needs structured replies")
        query = parse_context_query(data)
        export = find_export(self._exports, query.name)
        if export is None:
            return _refuse(option, OptionReply.ERR_UNKNOWN, "no such export")
        if protocol.ALLOCATION_CONTEXT not in query.queries:
            return _contexts(option, None)
        self._allocation_for = export
        return _contexts(option, protocol.ALLOCATION_CONTEXT_ID)


def _contexts(option: Option, allocation_id: int | None) -> Answer:
    reply = b""
    if allocation_id is not None:
        context = _U32.pack(allocation_id) + protocol.ALLOCATION_CONTEXT
        reply = option_reply(option, OptionReply.META_CONTEXT, context)
    return Answer(reply=reply + option_reply(option, OptionReply.ACK))


def _no_data(data: bytes) -> None:
    if data:
        raise OptionDataError(f"{len(data)} bytes of data where none belong")


def _refuse(option: int, kind: OptionReply, message: str) -> Answer:
    return Answer(reply=option_reply(option, kind, message.encode()))
