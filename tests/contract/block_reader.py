"""The conformance suite of BlockReader. To run it on an implementation, in a `test_*.py` here:

    class TestMyReader(BlockReaderSuite):
        @pytest.fixture
        def make(self, tmp_path):
            return lambda content: my_reader_that_shows(content)

`make` may be called several times in one test. `content` has zeros, repeated and random parts and a
size that is no multiple of 4 KiB; a reader that wants other sizes overrides `content`.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.base.errors import OutOfRangeError
from appliance.base.units import KIB, MIB
from appliance.blocks.device import BlockReader, NearReader
from appliance.blocks.extents import ExtentKind

MakeReader = Callable[[bytes], BlockReader]


@functools.cache
def sample_content(size_bytes: int, seed: int = 1) -> bytes:
    """Random, repeated and zero stretches of 512 bytes to 96 KiB, some of them not aligned."""
    rng = random.Random(seed)
    parts: list[bytes] = []
    total = 0
    while total < size_bytes:
        length = rng.choice([512, 1000, 4 * KIB, 12 * KIB, 64 * KIB, 96 * KIB])
        kind = rng.randrange(3)
        parts.append((bytes(length), rng.randbytes(length), b"holdfast" * (length // 8))[kind])
        total += len(parts[-1])
    return b"".join(parts)[:size_bytes]


def ranges(size_bytes: int, count: int, seed: int) -> Iterator[tuple[int, int]]:
    """Borders first, then random ranges of all magnitudes, as (offset, length)."""
    yield from [(0, 0), (size_bytes, 0), (0, 1), (size_bytes - 1, 1), (0, size_bytes)]
    rng = random.Random(seed)
    for _ in range(count):
        length = min(size_bytes, rng.randrange(1, 1 << rng.randrange(1, 19)))
        offset = rng.randrange(size_bytes - length + 1)
        yield offset // 512 * 512 if rng.random() < 0.3 else offset, length


class BlockReaderSuite:
    @pytest.fixture
    def make(self) -> MakeReader:
        raise NotImplementedError  # each implementation overrides this fixture

    @pytest.fixture
    def content(self) -> bytes:
        return sample_content(MIB + 5 * KIB + 512)

    @pytest.fixture
    def reader(self, make: MakeReader, content: bytes) -> Iterator[BlockReader]:
        reader = make(content)
        yield reader
        reader.close()

    def test_the_size_is_that_of_the_disk(self, reader: BlockReader, content: bytes) -> None:
        """`size_bytes` is exact, to the byte."""
        assert reader.size_bytes == len(content)

    @pytest.mark.parametrize("seed", range(3))
    def test_every_range_reads_as_the_disk(
        self, reader: BlockReader, content: bytes, seed: int
    ) -> None:
        """Any offset and length, aligned or not, gives exactly those bytes."""
        for offset, length in ranges(len(content), 150, seed):
            data = reader.read_at(offset, length)
            assert isinstance(data, bytes)
            assert data == content[offset : offset + length], (seed, offset, length)

    def test_reading_into_a_buffer_fills_it_and_nothing_else(
        self, reader: BlockReader, content: bytes
    ) -> None:
        """The whole buffer is filled, whatever was in it; bytes around it stay."""
        for offset, length in ranges(len(content), 100, 7):
            around = bytearray(b"\xee" * (length + 16))
            reader.read_into(offset, memoryview(around)[8 : 8 + length])
            assert around[8 : 8 + length] == content[offset : offset + length], (offset, length)
            assert around[:8] == around[8 + length :] == b"\xee" * 8

    def test_what_can_be_had_at_once_is_right(self, reader: BlockReader, content: bytes) -> None:
        """`try_read_at` returns None or the same bytes as `read_at`, before and after reading."""
        for offset, length in ranges(len(content), 100, 8):
            for _ in range(2):
                data = reader.try_read_at(offset, length)
                assert data is None or bytes(data) == content[offset : offset + length]
                reader.read_at(offset, length)

    def test_what_was_had_at_once_does_not_change_later(
        self, reader: BlockReader, content: bytes
    ) -> None:
        """A view that was returned stays valid while others are read."""
        kept = []
        for offset, length in ranges(len(content), 60, 9):
            reader.read_at(offset, length)
            kept.append((offset, length, reader.try_read_at(offset, length)))
        for offset, length, data in kept:
            assert data is None or bytes(data) == content[offset : offset + length]

    @pytest.mark.parametrize("seed", range(2))
    def test_the_map_is_contiguous_and_its_zeros_are_zeros(
        self, reader: BlockReader, content: bytes, seed: int
    ) -> None:
        """Extents follow each other from the first byte, differ from neighbours, and do not lie."""
        for offset, length in ranges(len(content), 60, seed):
            extents = reader.map_extents(offset, length)
            if not length:
                assert extents == []
                continue
            assert extents[0].offset == offset
            assert extents[-1].end <= offset + length
            for left, right in itertools.pairwise(extents):
                assert left.end == right.offset
                assert left.kind is not right.kind
            for extent in extents:
                if extent.kind is ExtentKind.ZERO:
                    assert not any(content[extent.offset : extent.end])

    @pytest.mark.parametrize("beyond", [1, 4096, 1 << 40])
    def test_what_lies_outside_the_disk_is_refused(
        self, reader: BlockReader, content: bytes, beyond: int
    ) -> None:
        """Every read names the range it refuses; nothing is returned short or padded."""
        size = len(content)
        for offset, length in [(size, beyond), (size - 1, beyond + 1), (-beyond, beyond), (0, -1)]:
            with pytest.raises(OutOfRangeError):
                reader.read_at(offset, length)
            with pytest.raises(OutOfRangeError):
                reader.try_read_at(offset, length)
            with pytest.raises(OutOfRangeError):
                reader.map_extents(offset, length)
        with pytest.raises(OutOfRangeError):
            reader.read_into(size - 1, memoryview(bytearray(2)))

    def test_threads_read_at_once(self, reader: BlockReader, content: bytes) -> None:
        """Eight readers at random places never see each other's bytes."""

        def read(seed: int) -> bool:
            return all(
                reader.read_at(offset, length) == content[offset : offset + length]
                for offset, length in ranges(len(content), 40, seed)
            )

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(100, 108)))

    def test_closing_twice_is_harmless(self, make: MakeReader, content: bytes) -> None:
        """`close` is idempotent."""
        reader = make(content)
        reader.close()
        reader.close()


class NearReaderSuite:
    """As `BlockReaderSuite`, for a reader that is a `NearReader` too; `make` is its fixture."""

    def test_what_is_near_is_what_is_read(self, make: MakeReader, content: bytes) -> None:
        """Each range is left out or answered as by `read_at`; what was just read is near."""
        reader = make(content)
        assert isinstance(reader, NearReader)
        asked = list(ranges(len(content), 60, seed=11))
        for again in range(2):
            found = reader.read_near_many(asked)
            assert len(found) == len(asked)
            for (offset, length), data in zip(asked, found, strict=True):
                assert data is None or data == content[offset : offset + length], (offset, length)
            for offset, length in asked[: 0 if again else None]:
                reader.read_at(offset, length)
        assert any(data is not None for data in found)
        reader.close()

    def test_a_range_outside_is_refused_for_all(self, make: MakeReader, content: bytes) -> None:
        """No part of an illegal request is served, however many legal ones come with it."""
        reader = make(content)
        assert isinstance(reader, NearReader)
        with pytest.raises(OutOfRangeError):
            reader.read_near_many([(0, 1), (len(content), 1)])
        reader.close()
