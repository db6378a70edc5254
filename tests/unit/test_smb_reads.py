"""Reads past smbprotocol: every protection, few credits, and what a host may do wrong."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from smbprotocol import Dialects
from smbprotocol.connection import Ciphers, SigningAlgorithms
from smbprotocol.exceptions import SMBConnectionClosed, SMBException

from hyperv import smb_reads
from hyperv.errors import UnprotectedError
from hyperv.smb_reads import READ_BYTES, ReadRefusedError, ReadTarget, SmbReads
from tests.support.scripted_smb import Asked, ScriptedSmb

KIB = 1 << 10
MIB = 1 << 20
CONTENT = random.Random(11).randbytes(5 * MIB + 777)
SEALED = {"cipher": Ciphers.AES_128_GCM}
PROTECTIONS: dict[str, dict[str, Any]] = {
    "gmac": {},
    "cmac": {"signing": SigningAlgorithms.AES_CMAC},
    "hmac": {"signing": SigningAlgorithms.HMAC_SHA256},
    "gcm": SEALED,
    "ccm": {"cipher": Ciphers.AES_128_CCM},
    "ccm of SMB 3.0.2": {"cipher": Ciphers.AES_128_CCM, "dialect": Dialects.SMB_3_0_2},
}


@contextmanager
def reads_from(**options: Any) -> Iterator[tuple[ScriptedSmb, SmbReads]]:
    with ScriptedSmb(CONTENT, **options) as host:
        reads = SmbReads(host.connection, host.session)
        host.start()
        yield host, reads


def fill(host: ScriptedSmb, reads: SmbReads, *ranges: tuple[int, int]) -> list[bytes]:
    buffers = [bytearray(length) for _, length in ranges]
    target = ReadTarget(
        tree_id=7, file_id=b"i" * 16, is_sealed=host.session.encrypt_data, is_dfs=False
    )
    wanted = [(at, memoryview(each)) for (at, _), each in zip(ranges, buffers, strict=True)]
    reads.fill(target, wanted)
    return [bytes(each) for each in buffers]


def parts(*ranges: tuple[int, int]) -> list[bytes]:
    return [CONTENT[at : at + length] for at, length in ranges]


RANGES = ((3 * MIB - 5, MIB + 9), (0, 1), (17, 0), (100, 64), (5 * MIB, 777), (0, 3 * MIB))


@pytest.mark.parametrize("options", PROTECTIONS.values(), ids=PROTECTIONS)
def test_ranges_are_filled_under_every_protection(options: dict[str, Any]) -> None:
    """Large and small, in any order; the far end checks the protection of the requests."""
    with reads_from(**options) as (host, reads):
        assert fill(host, reads, *RANGES) == parts(*RANGES)
        assert max(asked.length for asked in host.asked) == READ_BYTES


@pytest.mark.parametrize("options", [{}, SEALED], ids=["signed", "sealed"])
def test_threads_share_the_connection(options: dict[str, Any]) -> None:
    """Answers come in any order, and each finds its reader."""
    held: list[bytes] = []

    def two_at_a_time_backwards(asked: Asked) -> list[bytes]:
        held.insert(0, host.answer(asked))
        if len(held) < 2 and sum(each.length for each in host.asked) < 8 * MIB:
            return []
        out, held[:] = held[:], []
        return out

    with reads_from(**options) as (host, reads), ThreadPoolExecutor(4) as pool:
        host.answers = two_at_a_time_backwards
        work = [pool.submit(fill, host, reads, (each * MIB, 2 * MIB)) for each in range(4)]
        found = [each.result(60) for each in work]
    assert found == [parts((each * MIB, 2 * MIB)) for each in range(4)]


def test_few_credits_make_reads_small_and_never_more_are_used_than_granted() -> None:
    """A host that never lets us have more than three still gives the whole file."""
    granted = 3

    def grant(asked: Asked) -> list[bytes]:
        assert sum(each.credits_used for each in host.asked) <= granted + 3 * len(host.asked)
        return [host.answer(asked, credits=asked.credits_used)]

    with reads_from(credits=granted) as (host, reads):
        host.answers = grant
        assert fill(host, reads, (0, len(CONTENT))) == [CONTENT]
        assert {asked.credits_used for asked in host.asked} <= {1, 2}
        assert all(asked.length <= asked.credits_used * 64 * KIB for asked in host.asked)
        assert host.asked[0].credits_asked > 200


def test_a_host_that_grants_no_credits_ends_the_connection() -> None:
    """With an error, not with a wait."""
    with reads_from(credits=16) as (host, reads):
        host.answers = lambda asked: [host.answer(asked, credits=0)]
        with pytest.raises(SMBConnectionClosed, match="no credits"):
            fill(host, reads, (0, len(CONTENT)))


def test_a_short_answer_fails_that_read_only() -> None:
    """What was read with it fails too; the connection goes on."""
    with reads_from() as (host, reads):
        host.answers = lambda asked: [host.answer(asked, data=CONTENT[:5])]
        with pytest.raises(ReadRefusedError) as caught:
            fill(host, reads, (0, 2 * MIB), (MIB, 10))
        assert (caught.value.status, caught.value.length) == (0, 5)
        host.answers = lambda asked: [host.answer(asked)]
        assert fill(host, reads, (1, 100)) == parts((1, 100))


def test_a_longer_answer_than_asked_for_is_refused() -> None:
    """Nothing is written past a buffer."""
    with reads_from() as (host, reads):
        host.answers = lambda asked: [host.answer(asked, data=CONTENT[: asked.length + 1])]
        with pytest.raises(ReadRefusedError):
            fill(host, reads, (0, 100))


@pytest.mark.parametrize("options", [{}, SEALED], ids=["signed", "sealed"])
def test_a_refusal_says_its_status(options: dict[str, Any]) -> None:
    """STATUS_FILE_CLOSED, for example."""
    with reads_from(**options) as (host, reads):
        host.answers = lambda asked: [host.answer(asked, status=0xC0000128)]
        with pytest.raises(ReadRefusedError) as caught:
            fill(host, reads, (0, 3 * MIB))
        assert caught.value.status == 0xC0000128


@pytest.mark.parametrize("options", [{}, SEALED], ids=["signed", "sealed"])
def test_an_answer_may_come_later_and_with_its_data_elsewhere(options: dict[str, Any]) -> None:
    """An interim answer brings the credits, the last one the data, behind some padding."""

    def later(asked: Asked) -> list[bytes]:
        interim = host.answer(asked, status=0x103, flags=0x3)
        return [interim, host.answer(asked, credits=0, data_offset=88)]

    with reads_from(credits=32, **options) as (host, reads):
        host.answers = later
        assert fill(host, reads, (0, 3 * MIB)) == parts((0, 3 * MIB))


@pytest.mark.parametrize("options", PROTECTIONS.values(), ids=PROTECTIONS)
@pytest.mark.parametrize("at", [60, 140, 1000, -1], ids=["head", "start", "middle", "end"])
def test_a_changed_byte_is_never_taken_for_data(options: dict[str, Any], at: int) -> None:
    """Whichever it is: the read fails and the connection ends."""

    def changed(asked: Asked) -> list[bytes]:
        message = bytearray(host.answer(asked))
        message[at] ^= 1
        return [bytes(message)]

    with reads_from(**options) as (host, reads):
        host.answers = changed
        with pytest.raises(UnprotectedError):
            fill(host, reads, (0, 4096))
        with pytest.raises(UnprotectedError):
            fill(host, reads, (0, 1))


def test_an_answer_without_its_protection_is_refused() -> None:
    """Unsigned where it should be signed, plain where it should be sealed, sealed for another."""
    with reads_from() as (host, reads):
        host.answers = lambda asked: [host.answer(asked, flags=0x1)]
        with pytest.raises(UnprotectedError):
            fill(host, reads, (0, 4096))
    with reads_from(**SEALED) as (sealed, reads), ScriptedSmb(CONTENT) as plain:
        sealed.answers = lambda asked: [plain.answer(asked)]
        with pytest.raises(UnprotectedError):
            fill(sealed, reads, (0, 4096))
    with reads_from(**SEALED) as (other, reads):
        other.answers = lambda asked: [other.seal(plain.answer(asked), session_id=1)]
        with pytest.raises(UnprotectedError):
            fill(other, reads, (0, 4096))


def test_an_unsigned_answer_to_something_else_is_refused_too() -> None:
    """smbprotocol, which gets those, takes unsigned ones."""
    with reads_from() as (host, reads):
        host.answers = lambda asked: [host.answer(asked, command=5, flags=0x1)]
        with pytest.raises(UnprotectedError):
            fill(host, reads, (0, 10))
        assert host.passed_on == []


@pytest.mark.parametrize("options", PROTECTIONS.values(), ids=PROTECTIONS)
def test_other_messages_pass_to_smbprotocol_as_they_came(options: dict[str, Any]) -> None:
    """Between reads, and as large as they like."""

    def both(asked: Asked) -> list[bytes]:
        other = host.answer(asked, data=CONTENT[: asked.offset], command=5)
        sent.append(other)
        return [other, host.answer(asked)]

    sent: list[bytes] = []
    with reads_from(**options) as (host, reads):
        host.answers = both
        assert fill(host, reads, (0, 10), (4096, 10)) == parts((0, 10), (4096, 10))
        assert host.passed_on == sent


@pytest.mark.parametrize("sent_bytes", [0, 3, 70, 5000], ids=str)
@pytest.mark.parametrize("options", [{}, SEALED], ids=["signed", "sealed"])
def test_a_host_that_hangs_up_in_the_middle_fails_all_readers(
    options: dict[str, Any], sent_bytes: int
) -> None:
    """Those under way, those that wait their turn, and those that come later."""

    def hang_up(asked: Asked) -> list[bytes]:
        answer = host.answer(asked)
        host._socket.sendall((len(answer).to_bytes(4, "big") + answer)[:sent_bytes])
        host.hang_up()
        return []

    with reads_from(**options) as (host, reads), ThreadPoolExecutor(3) as pool:
        host.answers = hang_up
        work = [pool.submit(fill, host, reads, (0, 5 * MIB)) for _ in range(3)]
        for each in work:
            with pytest.raises(SMBConnectionClosed):
                each.result(60)
        with pytest.raises(SMBConnectionClosed):
            fill(host, reads, (0, 1))


@pytest.mark.parametrize("message", [b"\xfeSMB" + bytes(20), b"HTTP" + bytes(100)], ids=str)
def test_what_is_no_smb_ends_the_connection(message: bytes) -> None:
    """Too short, or something else."""
    with reads_from() as (host, reads):
        host.answers = lambda _: [message]
        with pytest.raises(SMBException, match="no SMB 3"):
            fill(host, reads, (0, 10))


def test_a_host_that_does_not_answer_loses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no late answer reaches the buffers."""
    monkeypatch.setattr(smb_reads, "ANSWER_TIMEOUT_S", 0.05)
    asked_for = threading.Event()

    def silent(_: Asked) -> list[bytes]:
        asked_for.set()
        return []

    with reads_from() as (host, reads):
        host.answers = silent
        with pytest.raises(SMBException, match="did not answer"):
            fill(host, reads, (0, 10))
        assert asked_for.wait(20)
        assert not host.connection.transport.connected
