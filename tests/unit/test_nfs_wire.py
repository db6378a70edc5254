"""XDR and RPC as on the wire: golden bytes, record marks, and what must be refused."""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfs_server import rpc, xdr
from nfs_server.errors import RpcError, XdrError
from nfs_server.protocol import AcceptStatus, FileType
from nfs_server.results import fattr, present_attributes
from nfs_server.vfs import Attributes

RECORD_MAX = 5000
NULL_CALL = bytes.fromhex(
    "00000007"  # xid
    "00000000 00000002"  # call, RPC version 2
    "000186a3 00000003 00000000"  # NFS, version 3, NULL
    "00000000 00000000 00000000 00000000"  # credential and verifier: none
)


def call(flavor: int, credential: bytes, *, verifier: bytes = b"", procedure: int = 1) -> bytes:
    head = NULL_CALL[:20] + struct.pack(">I", procedure)
    credentials = struct.pack(">II", flavor, len(credential)) + credential
    return head + credentials + struct.pack(">II", 0, len(verifier)) + verifier


def auth_sys(groups: int = 0, *, machine: bytes = b"esx1", tail: bytes = b"") -> bytes:
    words = struct.pack(">I", 1) + xdr.opaque(machine) + struct.pack(">III", 500, 100, groups)
    return words + struct.pack(f">{groups}I", *range(groups)) + tail


def denied(raw: bytes) -> tuple[int, ...]:
    """The words after "denied" of the reply to a call."""
    rejected = rpc.parse_call(memoryview(raw))
    assert isinstance(rejected, rpc.Rejected)
    reply = b"".join(rejected.reply)
    words = struct.unpack(f">{len(reply) // 4}I", reply)
    assert words[:4] == (1 << 31 | len(reply) - 4, 7, 1, 1)
    return words[4:]


@pytest.mark.parametrize("length", range(6))
def test_opaque_is_length_data_and_zeros_to_a_unit(length: int) -> None:
    """RFC 4506 section 4.10."""
    data = b"\xff" * length
    raw = xdr.opaque(data)
    assert raw == struct.pack(">I", length) + data + bytes(-length % 4)
    decoder = xdr.Decoder(memoryview(raw))
    assert decoder.opaque(length) == data
    decoder.finish()


def test_numbers_and_booleans_are_big_endian() -> None:
    """RFC 4506 sections 4.1 to 4.5."""
    raw = bytes.fromhex("0000002a 0123456789abcdef 00000001 00000000")
    decoder = xdr.Decoder(memoryview(raw))
    assert decoder.u32() == 42
    assert decoder.u64() == 0x0123456789ABCDEF
    assert (decoder.boolean(), decoder.boolean()) == (True, False)
    decoder.finish()


@pytest.mark.parametrize(
    "read",
    [
        lambda words: words.u64(),
        lambda words: words.fixed(5),
        lambda words: words.opaque(100),
        lambda words: [words.u32(), words.u32()],
        lambda words: words.finish(),
        lambda words: words.boolean(),
    ],
)
def test_what_does_not_fit_is_an_error(read) -> None:  # type: ignore[no-untyped-def]
    """Nothing is read beyond the end, and nothing is left over unnoticed."""
    with pytest.raises(XdrError):
        read(xdr.Decoder(memoryview(b"\0\0\0\5")))


def test_a_length_is_checked_before_anything_is_taken() -> None:
    """A claim of 4 GiB costs nothing."""
    with pytest.raises(XdrError, match="4294967295"):
        xdr.Decoder(memoryview(b"\xff\xff\xff\xffabcd")).opaque_view(1024)


def test_attributes_are_84_bytes_in_the_order_of_the_rfc() -> None:
    """fattr3, RFC 1813 section 2.6."""
    attributes = Attributes(
        type=FileType.REGULAR,
        mode=0o644,
        links=2,
        uid=3,
        gid=4,
        size_bytes=5,
        used_bytes=6,
        number=8,
        accessed_ns=9 * 10**9 + 1,
        modified_ns=10 * 10**9 + 2,
        changed_ns=11 * 10**9 + 999_999_999,
    )
    golden = bytes.fromhex(
        "00000001 000001a4 00000002 00000003 00000004"
        "0000000000000005 0000000000000006 00000000 00000000"
        "0000000000000007 0000000000000008"
        "00000009 00000001 0000000a 00000002 0000000b 3b9ac9ff"
    )
    assert fattr(attributes, 7) == golden
    assert present_attributes(attributes, 7) == b"\0\0\0\1" + golden


def test_replies_are_records_as_the_rfc_says() -> None:
    """RFC 5531 section 9, with an empty verifier."""
    golden = "8000001c 00000007 00000001 00000000 00000000 00000000 00000000 0000002a"
    assert b"".join(rpc.success(7, [b"\0\0\0\x2a"], 4)) == bytes.fromhex(golden)
    golden = "80000020 00000007 00000001 00000000 00000000 00000000 00000002 00000003 00000003"
    mismatch = rpc.failure(7, AcceptStatus.PROG_MISMATCH, 3, 3)
    assert b"".join(mismatch) == bytes.fromhex(golden)


def test_a_call_with_auth_sys_says_who_calls() -> None:
    """The credential's uid and gid; up to 16 groups are passed over."""
    found = rpc.parse_call(memoryview(call(1, auth_sys(16)) + b"argument"))
    assert isinstance(found, rpc.Call)
    assert (found.xid, found.program, found.version, found.procedure) == (7, 100003, 3, 1)
    assert (found.uid, found.gid, bytes(found.arguments)) == (500, 100, b"argument")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(NULL_CALL[:8] + b"\0\0\0\3" + NULL_CALL[12:], (0, 2, 2), id="RPC version 3"),
        pytest.param(call(1, auth_sys(17)), (1, 1), id="17 groups"),
        pytest.param(call(1, auth_sys(machine=b"m" * 256)), (1, 1), id="long machine name"),
        pytest.param(call(1, auth_sys(tail=b"more")), (1, 1), id="left over"),
        pytest.param(call(1, b""), (1, 1), id="empty AUTH_SYS"),
        pytest.param(call(0, bytes(404)), (1, 1), id="long credential"),
        pytest.param(call(0, b"", verifier=bytes(404)), (1, 3), id="long verifier"),
        pytest.param(NULL_CALL[:-4], (1, 3), id="no verifier"),
        pytest.param(call(3, b""), (1, 5), id="AUTH_DH"),
        pytest.param(call(6, b"", procedure=0), (1, 5), id="beginning of a GSS context"),
    ],
)
def test_a_call_that_cannot_be_taken_is_denied_with_its_reason(
    raw: bytes, words: tuple[int, ...]
) -> None:
    """RPC_MISMATCH or AUTH_ERROR: RFC 5531 section 9."""
    assert denied(raw) == words


def test_null_takes_any_credential() -> None:
    """Clients ping with what they have."""
    assert isinstance(rpc.parse_call(memoryview(call(3, b"", procedure=0))), rpc.Call)


@pytest.mark.parametrize("raw", [b"", NULL_CALL[:31], NULL_CALL[:4] + b"\0\0\0\1" + NULL_CALL[8:]])
def test_what_is_no_call_ends_the_connection(raw: bytes) -> None:
    """There is nobody to answer."""
    with pytest.raises(RpcError):
        rpc.parse_call(memoryview(raw))


def fragments(record: bytes, cuts: list[int]) -> bytes:
    places = [0, *sorted(cuts), len(record)]
    out = b""
    for index, start in enumerate(places[:-1]):
        end = places[index + 1]
        last = 1 << 31 if index == len(cuts) else 0
        out += struct.pack(">I", last | end - start) + record[start:end]
    return out


@given(
    st.lists(st.binary(min_size=1, max_size=200), min_size=1, max_size=5),
    st.randoms(use_true_random=False),
)
def test_records_arrive_whatever_pieces_they_came_in(
    records: list[bytes], rng: random.Random
) -> None:
    """Fragments and segments may be cut anywhere."""
    stream = b"".join(
        fragments(record, [rng.randint(0, len(record)) for _ in range(rng.randrange(4))])
        for record in records
    )
    buffer = rpc.RecordBuffer(RECORD_MAX)
    found = []
    while stream:
        size = rng.randint(1, len(stream))
        buffer.feed(stream[:size])
        stream = stream[size:]
        while (record := buffer.take()) is not None:
            found.append(bytes(record))
    assert found == records
    assert not len(buffer)


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(struct.pack(">I", 1 << 31 | RECORD_MAX + 1), id="one fragment"),
        pytest.param(
            struct.pack(">I", RECORD_MAX) + bytes(RECORD_MAX) + struct.pack(">I", 1), id="two"
        ),
        pytest.param(struct.pack(">I", 0) * 65, id="empty fragments without end"),
    ],
)
def test_a_record_that_is_too_long_is_refused_before_it_has_come(stream: bytes) -> None:
    """What is held is bounded."""
    buffer = rpc.RecordBuffer(RECORD_MAX)
    buffer.feed(stream)
    with pytest.raises(RpcError):
        buffer.take()
