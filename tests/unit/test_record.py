"""Decoding one record: what each kind of proof finds."""

from __future__ import annotations

import contextlib
import random

import google_crc32c
import pytest
import zstandard

from appliance.base.secret import Secret
from appliance.repository.crypto import SEAL_BYTES, RecordCipher
from appliance.repository.digest import Digester
from appliance.repository.errors import ChunkCorruptError
from appliance.repository.format import RECORD_HEADER, RecordFlag, RecordKind
from appliance.repository.record import Proof, RecordCodec

DIGESTER = Digester(bytes(32))
COMPRESSIBLE = b"holdfast" * 64 + random.Random(1).randbytes(300)
INCOMPRESSIBLE = random.Random(2).randbytes(700)
FRAME = zstandard.ZstdCompressor().compress(COMPRESSIBLE)  # as a guest may keep one


def codec(*, encrypted: bool) -> RecordCodec:
    return RecordCodec(DIGESTER, RecordCipher(Secret(bytes(32))) if encrypted else None)


@pytest.mark.parametrize("proof", list(Proof))
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "encrypted"])
@pytest.mark.parametrize("raw", [COMPRESSIBLE, INCOMPRESSIBLE], ids=["zstd", "raw"])
def test_every_flipped_bit_of_a_record_is_found(raw: bytes, encrypted: bool, proof: Proof) -> None:
    """Whichever bit is flipped, decoding raises or returns what was written, never other bytes."""
    digest = DIGESTER.chunk(raw)
    record = bytearray(b"".join(codec(encrypted=encrypted).encode(RecordKind.CHUNK, digest, raw)))
    decoder = codec(encrypted=encrypted)
    assert decoder.decode(bytes(record), digest, proof) == raw
    for bit in range(8 * len(record)):
        record[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ChunkCorruptError):
            assert decoder.decode(bytes(record), digest, proof) == raw
        record[bit // 8] ^= 1 << bit % 8


def test_a_clear_record_does_not_pass_in_an_encrypted_repository() -> None:
    """Who can write to an encrypted repository cannot pass a record with a good checksum."""
    forged = b"".join(codec(encrypted=False).encode(RecordKind.CHUNK, bytes(32), COMPRESSIBLE))
    for proof in Proof:
        with pytest.raises(ChunkCorruptError):
            codec(encrypted=True).decode(forged, bytes(32), proof)


@pytest.mark.parametrize("proof", list(Proof))
@pytest.mark.parametrize("raw", [COMPRESSIBLE, INCOMPRESSIBLE, FRAME], ids=["zstd", "raw", "frame"])
def test_a_sealed_payload_is_not_read_another_way(raw: bytes, proof: Proof) -> None:
    """Nobody without the key can have packed content served packed, or the other way round."""
    digest = DIGESTER.chunk(raw)
    decoder = codec(encrypted=True)
    head, payload = decoder.encode(RecordKind.CHUNK, digest, raw)
    magic, kind, flags, reserved, _, _, stored, crc, _ = RECORD_HEADER.unpack(head)
    for raw_bytes in (len(payload) - SEAL_BYTES, len(COMPRESSIBLE)):
        fields = (magic, kind, flags ^ RecordFlag.ZSTD, reserved, digest, raw_bytes, stored, crc)
        forged = RECORD_HEADER.pack(*fields, 0)[:-4]
        forged += google_crc32c.value(forged).to_bytes(4, "little")
        with pytest.raises(ChunkCorruptError):
            decoder.decode(forged + payload, digest, proof)


@pytest.mark.parametrize("proof", list(Proof))
@pytest.mark.parametrize("encrypted", [False, True], ids=["clear", "encrypted"])
@pytest.mark.parametrize("damaged", range(0, 40, 13))
def test_the_damaged_one_of_many_is_named(damaged: int, encrypted: bool, proof: Proof) -> None:
    """Many records are decoded as each alone; where one is damaged, the error names that one."""
    both = (COMPRESSIBLE, INCOMPRESSIBLE)
    raw_of = {
        DIGESTER.chunk(raw): raw for n in range(20) for raw in (n.to_bytes() + b for b in both)
    }
    encoder = codec(encrypted=encrypted)
    records = {
        digest: b"".join(encoder.encode(RecordKind.CHUNK, digest, raw))
        for digest, raw in raw_of.items()
    }
    assert encoder.decode_many(records, proof) == raw_of
    digest, record = list(records.items())[damaged]
    records[digest] = record[:-9] + bytes([record[-9] ^ 1]) + record[-8:]
    with pytest.raises(ChunkCorruptError) as caught:
        encoder.decode_many(records, proof)
    assert digest.hex()[:16] in str(caught.value)


@pytest.mark.parametrize("proof", list(Proof))
def test_a_record_of_nothing_is_refused(proof: Proof) -> None:
    """Nobody writes one; whoever forges it does not get it as far as the decompressor."""
    encoder = codec(encrypted=False)
    forged = b"".join(encoder.encode(RecordKind.CHUNK, DIGESTER.chunk(b""), b""))
    good = b"".join(encoder.encode(RecordKind.CHUNK, DIGESTER.chunk(COMPRESSIBLE), COMPRESSIBLE))
    records = {DIGESTER.chunk(b""): forged, DIGESTER.chunk(COMPRESSIBLE): good}
    with pytest.raises(ChunkCorruptError, match="0 bytes"):
        encoder.decode_many(records, proof)
    with pytest.raises(ChunkCorruptError, match="0 bytes"):
        encoder.decode(forged, DIGESTER.chunk(b""), proof)


@pytest.mark.parametrize("seed", range(8))
def test_any_damage_among_many_is_found(seed: int) -> None:
    """Overwritten frames among good ones give an error or the right bytes, never a crash."""
    source = random.Random(seed)
    encoder = codec(encrypted=False)
    raws = [bytes([n]) * 5000 + source.randbytes(2000) for n in range(12)]
    whole = {
        DIGESTER.chunk(raw): b"".join(encoder.encode(RecordKind.CHUNK, DIGESTER.chunk(raw), raw))
        for raw in raws
    }
    for _ in range(400):
        records = dict(whole)
        for digest in source.sample(list(whole), source.randrange(1, 4)):
            record = bytearray(records[digest])
            start = source.randrange(56, len(record))  # behind the header: what zstd is given
            end = min(len(record), start + source.choice([1, 4, 64, 4096]))
            record[start:end] = source.randbytes(end - start)
            records[digest] = bytes(record)
        with contextlib.suppress(ChunkCorruptError):
            decoded = encoder.decode_many(records)
            assert list(decoded.values()) == raws
