"""Negotiation as a pure state machine: every option, in clear text and around TLS."""

from __future__ import annotations

import struct

import pytest

from nbd_server import protocol
from nbd_server.backend import Export, export_table
from nbd_server.errors import ProtocolError
from nbd_server.handshake import Answer, Handshake, Next, TlsMode
from nbd_server.protocol import Info, Option, OptionReply, TransmissionFlag
from tests.support.nbd_client import context_data, info_data
from tests.support.nbd_disk import Disk

TIB = 1 << 40


EXPORTS = export_table(
    [
        Export(name="disk-0", backend=Disk(), description="système"),  # type: ignore[arg-type]
        Export(name="größe/1", backend=Disk(512, read_only=True)),  # type: ignore[arg-type]
    ]
)


def replies(answer: Answer) -> list[tuple[int, int, bytes]]:
    """Cut an answer into (option, reply type, data)."""
    found, raw = [], answer.reply
    while raw:
        magic, option, kind, length = protocol.OPTION_REPLY.unpack_from(raw)
        assert magic == protocol.OPTION_REPLY_MAGIC
        found.append((option, kind, raw[20 : 20 + length]))
        raw = raw[20 + length :]
    return found


def kinds(answer: Answer) -> list[int]:
    return [kind for _, kind, _ in replies(answer)]


def test_go_describes_the_export_and_starts_transmission() -> None:
    """A disk of 62 TiB is announced to the byte, and nothing follows the ACK."""
    answer = Handshake(EXPORTS).option(Option.GO, info_data("disk-0", 3, 1, 2, 77))
    infos = {struct.unpack(">H", data[:2])[0]: data[2:] for _, _, data in replies(answer)[:-1]}
    size_bytes, flags = struct.unpack(">QH", infos[Info.EXPORT])
    assert size_bytes == 62 * TIB
    assert flags & TransmissionFlag.CAN_MULTI_CONN and not flags & TransmissionFlag.SEND_DF
    assert struct.unpack(">III", infos[Info.BLOCK_SIZE]) == (1, 4096, 32 << 20)
    assert infos[Info.NAME] == b"disk-0"
    assert infos[Info.DESCRIPTION].decode() == "système"
    assert kinds(answer)[-1] == OptionReply.ACK
    assert answer.next is Next.TRANSMIT
    assert answer.session is not None and answer.session.export.name == "disk-0"


def test_info_answers_like_go_but_stays() -> None:
    handshake = Handshake(EXPORTS)
    answer = handshake.option(Option.INFO, info_data("größe/1"))
    assert kinds(answer) == [OptionReply.INFO, OptionReply.ACK]
    assert answer.next is Next.OPTION and answer.session is None
    assert struct.unpack(">HQH", replies(answer)[0][2])[2] & TransmissionFlag.READ_ONLY


def test_the_empty_name_is_the_first_export() -> None:
    session = Handshake(EXPORTS).option(Option.GO, info_data("")).session
    assert session is not None and session.export.name == "disk-0"


def test_an_unknown_export_is_refused_and_the_client_may_try_another() -> None:
    handshake = Handshake(EXPORTS)
    assert kinds(handshake.option(Option.GO, info_data("nope"))) == [OptionReply.ERR_UNKNOWN]
    assert handshake.option(Option.GO, info_data("disk-0")).next is Next.TRANSMIT


@pytest.mark.parametrize("no_zeroes", [False, True])
def test_export_name_pads_unless_told_not_to(no_zeroes: bool) -> None:
    """The oldest way in: size, flags, and 124 zeros for clients that did not decline them."""
    handshake = Handshake(EXPORTS)
    handshake.client_flags(3 if no_zeroes else 1)
    answer = handshake.option(Option.EXPORT_NAME, b"disk-0")
    assert len(answer.reply) == 10 + (0 if no_zeroes else 124)
    assert struct.unpack(">Q", answer.reply[:8]) == (62 * TIB,)
    assert answer.next is Next.TRANSMIT


def test_export_name_of_an_unknown_export_closes() -> None:
    """There is no error reply to this option."""
    answer = Handshake(EXPORTS).option(Option.EXPORT_NAME, b"nope")
    assert (answer.reply, answer.next) == (b"", Next.CLOSE)


def test_client_flags_that_were_not_offered_are_fatal() -> None:
    with pytest.raises(ProtocolError):
        Handshake(EXPORTS).client_flags(4)


def test_list_names_every_export_in_order() -> None:
    answer = Handshake(EXPORTS).option(Option.LIST, b"")
    names = []
    for _, kind, data in replies(answer)[:-1]:
        assert kind == OptionReply.SERVER
        (length,) = struct.unpack(">I", data[:4])
        names.append((data[4 : 4 + length].decode(), data[4 + length :].decode()))
    assert names == [("disk-0", "système"), ("größe/1", "")]


@pytest.mark.parametrize("option", [Option.LIST, Option.STRUCTURED_REPLY, Option.STARTTLS])
def test_data_where_none_belong_are_invalid(option: Option) -> None:
    answer = Handshake(EXPORTS, TlsMode.OPTIONAL).option(option, b"x")
    assert kinds(answer) == [OptionReply.ERR_INVALID] and answer.next is Next.OPTION


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        struct.pack(">I", 7) + b"disk-0",
        struct.pack(">I", 0xFFFFFFFF) + b"disk-0",
        struct.pack(">I", 5000) + bytes(5002),
        info_data("disk-0")[:-1],
        info_data("disk-0", 1)[:-1],
        info_data("disk-0") + b"\0",
    ],
)
@pytest.mark.parametrize("option", [Option.INFO, Option.GO])
def test_malformed_data_of_go_are_invalid(option: Option, data: bytes) -> None:
    answer = Handshake(EXPORTS).option(option, data)
    assert kinds(answer) == [OptionReply.ERR_INVALID] and answer.next is Next.OPTION


@pytest.mark.parametrize("option", [0, 4, 11, 12, 1 << 20, 0xFFFFFFFF])
def test_unknown_options_are_unsupported(option: int) -> None:
    """Among them EXTENDED_HEADERS (11), which makes newer clients fall back."""
    handshake = Handshake(EXPORTS)
    assert replies(handshake.option(option, b"abc"))[0][:2] == (option, OptionReply.ERR_UNSUP)
    assert kinds(handshake.option(Option.LIST, b""))[-1] == OptionReply.ACK


def test_abort_is_acknowledged_and_closes() -> None:
    answer = Handshake(EXPORTS).option(Option.ABORT, b"")
    assert kinds(answer) == [OptionReply.ACK] and answer.next is Next.CLOSE


# metadata contexts


def with_structured_replies() -> Handshake:
    handshake = Handshake(EXPORTS)
    assert kinds(handshake.option(Option.STRUCTURED_REPLY, b"")) == [OptionReply.ACK]
    return handshake


@pytest.mark.parametrize("option", [Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT])
def test_contexts_need_structured_replies(option: Option) -> None:
    answer = Handshake(EXPORTS).option(option, context_data("disk-0", b"base:allocation"))
    assert kinds(answer) == [OptionReply.ERR_INVALID]


@pytest.mark.parametrize(
    ("queries", "found"),
    [
        ((), True),
        ((b"base:",), True),
        ((b"base:allocation",), True),
        ((b"qemu:dirty-bitmap:x", b"base:allocation"), True),
        ((b"qemu:",), False),
        ((b"base:other",), False),
        ((b"",), False),
    ],
)
def test_listing_contexts(queries: tuple[bytes, ...], found: bool) -> None:
    answer = with_structured_replies().option(
        Option.LIST_META_CONTEXT, context_data("disk-0", *queries)
    )
    assert (OptionReply.META_CONTEXT in kinds(answer)) == found
    if found:
        assert replies(answer)[0][2] == bytes(4) + b"base:allocation"


@pytest.mark.parametrize(
    ("queries", "found"),
    [((), False), ((b"base:",), False), ((b"x:y", b"base:allocation"), True)],
)
def test_setting_contexts(queries: tuple[bytes, ...], found: bool) -> None:
    """No wildcards here, and unknown namespaces are no error."""
    handshake = with_structured_replies()
    answer = handshake.option(Option.SET_META_CONTEXT, context_data("disk-0", *queries))
    assert kinds(answer)[-1] == OptionReply.ACK
    session = handshake.option(Option.GO, info_data("disk-0")).session
    assert session is not None and session.allocation == found


@pytest.mark.parametrize(
    "second",
    [
        context_data("disk-0"),
        context_data("nope", b"base:allocation"),
        context_data("disk-0", b"base:allocation")[:-1],
    ],
)
def test_a_second_choice_replaces_the_first_even_when_it_fails(second: bytes) -> None:
    handshake = with_structured_replies()
    handshake.option(Option.SET_META_CONTEXT, context_data("disk-0", b"base:allocation"))
    handshake.option(Option.SET_META_CONTEXT, second)
    session = handshake.option(Option.GO, info_data("disk-0")).session
    assert session is not None and session.allocation is False


def test_contexts_of_another_export_do_not_count() -> None:
    handshake = with_structured_replies()
    handshake.option(Option.SET_META_CONTEXT, context_data("größe/1", b"base:allocation"))
    session = handshake.option(Option.GO, info_data("disk-0")).session
    assert session is not None and session.structured and not session.allocation


def test_a_query_count_beyond_the_data_is_invalid() -> None:
    """A count of 4 billion is refused before anything is built from it."""
    data = struct.pack(">I", 0) + struct.pack(">I", 0xFFFFFFFF)
    answer = with_structured_replies().option(Option.LIST_META_CONTEXT, data)
    assert kinds(answer) == [OptionReply.ERR_INVALID]


# TLS


def test_starttls_without_certificates_is_refused() -> None:
    assert kinds(Handshake(EXPORTS).option(Option.STARTTLS, b"")) == [OptionReply.ERR_POLICY]


@pytest.mark.parametrize("option", [2 + n for n in range(1, 12) if n != 3])
def test_everything_in_clear_text_is_refused_where_tls_is_required(option: int) -> None:
    answer = Handshake(EXPORTS, TlsMode.REQUIRED).option(option, b"")
    assert kinds(answer) == [OptionReply.ERR_TLS_REQD] and answer.next is Next.OPTION


def test_export_name_in_clear_text_closes_where_tls_is_required() -> None:
    answer = Handshake(EXPORTS, TlsMode.REQUIRED).option(Option.EXPORT_NAME, b"disk-0")
    assert (answer.reply, answer.next) == (b"", Next.CLOSE)


def test_abort_in_clear_text_is_allowed_where_tls_is_required() -> None:
    answer = Handshake(EXPORTS, TlsMode.REQUIRED).option(Option.ABORT, b"")
    assert kinds(answer) == [OptionReply.ACK]


def test_starttls_forgets_what_was_negotiated_before() -> None:
    """Structured replies and contexts chosen in clear text may have been injected."""
    handshake = Handshake(EXPORTS, TlsMode.OPTIONAL)
    handshake.option(Option.STRUCTURED_REPLY, b"")
    handshake.option(Option.SET_META_CONTEXT, context_data("disk-0", b"base:allocation"))
    assert handshake.option(Option.STARTTLS, b"").next is Next.START_TLS
    handshake.secured()
    assert kinds(handshake.option(Option.STARTTLS, b"")) == [OptionReply.ERR_INVALID]
    session = handshake.option(Option.GO, info_data("disk-0")).session
    assert session is not None and not session.structured and not session.allocation


def test_export_tables_need_different_names() -> None:
    export = Export(name="a", backend=Disk())  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        export_table([export, export])
    with pytest.raises(ValueError):
        export_table([])
    with pytest.raises(ValueError):
        Export(name="x" * 4097, backend=Disk())  # type: ignore[arg-type]
