"""The conformance suite of `vmware.transports.contract.DiskReader`. For an implementation:

    class TestMyTransport(TransportSuite):
        @pytest.fixture
        def open_disk(self, …):
            return lambda content, planned=None: my_transport_over(content).open(request)

`open_disk` may be called several times in a test. `content` is a multiple of 512 bytes. A transport
with access in any order also runs `BlockReaderSuite`, through `DiskAsBlockReader`.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import pytest

from appliance.base.units import KIB, MIB
from tests.contract.block_reader import sample_content
from vmware.transports.contract import Access, DiskReader, ExtentKind, OutOfDiskError


class OpenDisk(Protocol):
    def __call__(
        self, content: bytes, planned: Sequence[tuple[int, int]] | None = None
    ) -> DiskReader: ...


def segments(size_bytes: int, segment_bytes: int) -> list[tuple[int, int]]:
    """The disk cut as the repository's writer reads it, as (offset, length)."""
    return [
        (start, min(segment_bytes, size_bytes - start))
        for start in range(0, size_bytes, segment_bytes)
    ]


class TransportSuite:
    segment_bytes = 64 * KIB

    @pytest.fixture
    def open_disk(self) -> OpenDisk:
        raise NotImplementedError  # each implementation overrides this fixture

    @pytest.fixture
    def content(self) -> bytes:
        return sample_content(3 * MIB + 5 * KIB + 512)

    @pytest.fixture
    def disk(self, open_disk: OpenDisk, content: bytes) -> Iterator[DiskReader]:
        disk = open_disk(content)
        yield disk
        disk.close()

    def test_the_size_is_that_of_the_disk(self, disk: DiskReader, content: bytes) -> None:
        """`size_bytes` is exact, to the byte."""
        assert disk.size_bytes == len(content)

    def test_the_whole_disk_in_order_is_the_disk(self, disk: DiskReader, content: bytes) -> None:
        """A full backup reads every byte once, in ascending order."""
        read = [disk.read_at(*place) for place in segments(len(content), self.segment_bytes)]
        assert b"".join(read) == content

    @pytest.mark.parametrize("workers", [2, 4])
    def test_workers_that_share_the_disk_get_it_whole(
        self, disk: DiskReader, content: bytes, workers: int
    ) -> None:
        """Segments are taken in order by several threads and read in what order they like."""
        read = bytearray(len(content))

        def one(place: tuple[int, int]) -> None:
            offset, length = place
            for extent in disk.map_extents(offset, length):
                disk.read_into(extent.offset, memoryview(read)[extent.offset : extent.end])

        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(one, segments(len(content), self.segment_bytes)))
        assert read == content

    @pytest.mark.parametrize("seed", range(3))
    def test_planned_extents_are_read_right(
        self, open_disk: OpenDisk, content: bytes, seed: int
    ) -> None:
        """An incremental reads scattered extents, ascending, by several threads."""
        rng = random.Random(seed)
        cuts = sorted(rng.sample(range(len(content)), 40))
        planned = [(start, end - start) for start, end in itertools.pairwise(cuts)][::2]
        disk = open_disk(content, planned)
        try:
            with ThreadPoolExecutor(3) as pool:
                read = list(pool.map(lambda place: disk.read_at(*place), planned))
        finally:
            disk.close()
        assert read == [content[offset : offset + length] for offset, length in planned]

    def test_what_was_not_planned_is_read_right_too(
        self, open_disk: OpenDisk, content: bytes
    ) -> None:
        """The plan is a hint: reading beside it costs time, never bytes."""
        disk = open_disk(content, [(64 * KIB, 64 * KIB), (2 * MIB, 64 * KIB)])
        try:
            for offset, length in segments(len(content), 48 * KIB):
                assert disk.read_at(offset, length) == content[offset : offset + length]
        finally:
            disk.close()

    def test_reading_into_a_buffer_fills_it_and_nothing_else(
        self, disk: DiskReader, content: bytes
    ) -> None:
        """The whole buffer is filled, whatever was in it; bytes around it stay."""
        for offset, length in [(0, 1), (511, 1026), (5000, 200 * KIB), (len(content) - 7, 7)]:
            around = bytearray(b"\xee" * (length + 16))
            disk.read_into(offset, memoryview(around)[8 : 8 + length])
            assert around[8 : 8 + length] == content[offset : offset + length], (offset, length)
            assert around[:8] == around[8 + length :] == b"\xee" * 8

    def test_the_map_follows_the_disk_and_its_zeros_are_zeros(
        self, disk: DiskReader, content: bytes
    ) -> None:
        """Extents follow each other from the first byte to the last, and do not lie."""
        offset = 0
        while offset < len(content):
            extents = disk.map_extents(offset, len(content) - offset)
            assert extents
            assert extents[0].offset == offset
            for left, right in itertools.pairwise(extents):
                assert left.end == right.offset
                assert left.kind is not right.kind
            for extent in extents:
                if extent.kind is ExtentKind.ZERO:
                    assert not any(content[extent.offset : extent.end])
            offset = extents[-1].end
        assert offset == len(content)
        assert disk.map_extents(0, 0) == []

    @pytest.mark.parametrize("beyond", [1, 4096, 1 << 40])
    def test_what_lies_outside_the_disk_is_refused(
        self, disk: DiskReader, content: bytes, beyond: int
    ) -> None:
        """Nothing is returned short or padded."""
        size = len(content)
        for offset, length in [(size, beyond), (size - 1, beyond + 1), (-beyond, beyond), (0, -1)]:
            for method in (disk.read_at, disk.try_read_at, disk.map_extents):
                with pytest.raises(OutOfDiskError):
                    method(offset, length)
        with pytest.raises(OutOfDiskError):
            disk.read_into(size - 1, memoryview(bytearray(2)))

    def test_any_order_means_any_order(self, disk: DiskReader, content: bytes) -> None:
        """A reader that promises it may be read backwards, and again."""
        if disk.access is not Access.ANY_ORDER:
            return
        for _ in range(2):
            for offset, length in reversed(segments(len(content), 100_000)):
                assert disk.read_at(offset, length) == content[offset : offset + length]

    def test_an_empty_read_is_empty(self, disk: DiskReader, content: bytes) -> None:
        """Also at the end of the disk."""
        assert disk.read_at(0, 0) == disk.read_at(len(content), 0) == b""

    def test_closing_early_and_twice_is_harmless(self, open_disk: OpenDisk, content: bytes) -> None:
        """After nothing, and after a part, was read."""
        for length in (0, 4096):
            disk = open_disk(content)
            disk.read_at(0, length)
            disk.close()
            disk.close()
