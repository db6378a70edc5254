"""Loading records: what the index claims is bounded before anything is read."""

from __future__ import annotations

from typing import Any, cast

from appliance.repository.chunk_store import ChunkStore
from appliance.repository.digest import Digester
from appliance.repository.format import RECORD_LIMIT_BYTES, RecordKind
from appliance.repository.index import Place
from appliance.repository.record import RecordCodec

RAW = b"holdfast" * 8192


def test_a_place_that_claims_gigabytes_is_read_as_one_record() -> None:
    """A damaged index entry makes no read larger than a record, alone or among others."""
    digester = Digester(bytes(32))
    codec = RecordCodec(digester, None)
    digest = digester.chunk(RAW)
    record = b"".join(codec.encode(RecordKind.CHUNK, digest, RAW))
    place = Place(bytes(16), 0, 0xFFFF_FFFF, len(RAW))
    lengths: list[int] = []

    class Index:
        def find(self, _: bytes) -> Place:
            return place

        def find_many(self, _: list[bytes]) -> dict[bytes, Place]:
            return {digest: place}

    class Store:
        def get_range(self, _name: str, _offset: int, length: int) -> bytes:
            lengths.append(length)
            return record

    chunks = ChunkStore(cast(Any, Store()), cast(Any, Index()), codec)
    assert chunks.load(digest) == RAW
    assert chunks.load_many([digest]) == {digest: RAW}
    assert max(lengths) <= RECORD_LIMIT_BYTES
