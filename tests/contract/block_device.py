"""The conformance suite of BlockDevice: BlockReader's, and what writing promises."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from appliance.base.errors import OutOfRangeError
from appliance.base.units import KIB
from appliance.blocks.device import BlockDevice
from appliance.blocks.extents import ExtentKind
from tests.contract.block_reader import BlockReaderSuite, ranges


def assert_shows(device: BlockDevice, model: bytes | bytearray) -> None:
    """Every way of reading agrees with the model."""
    assert device.read_at(0, len(model)) == model
    buffer = bytearray(len(model))
    device.read_into(0, memoryview(buffer))
    assert buffer == model
    at_once = device.try_read_at(0, len(model))
    assert at_once is None or at_once == model
    for extent in device.map_extents(0, len(model)):
        if extent.kind is ExtentKind.ZERO:
            assert not any(model[extent.offset : extent.end]), extent


class BlockDeviceSuite(BlockReaderSuite):
    @pytest.fixture
    def device(self, reader: BlockDevice) -> BlockDevice:
        return reader

    @pytest.mark.parametrize("seed", range(4))
    def test_writes_and_zeros_read_back(
        self, device: BlockDevice, content: bytes, seed: int
    ) -> None:
        """After any writes, zeroed ranges and flushes the disk equals a plain byte array."""
        model = bytearray(content)
        rng = random.Random(seed)
        for offset, length in ranges(len(content), 120, seed):
            action = rng.randrange(5)
            if action < 3:
                data = rng.randbytes(length)
                device.write_at(offset, memoryview(data) if action else data)
                model[offset : offset + length] = data
            elif action == 3:
                device.zero_at(offset, length)
                model[offset : offset + length] = bytes(length)
            else:
                device.flush()
            around = max(0, offset - 5000), min(len(model), offset + length + 5000)
            assert device.read_at(around[0], around[1] - around[0]) == model[slice(*around)], seed
        assert_shows(device, model)

    def test_the_writer_keeps_its_buffer(self, device: BlockDevice, content: bytes) -> None:
        """What was written does not change when the caller uses its buffer again."""
        buffer = bytearray(b"a" * 10 * KIB)
        device.write_at(3 * KIB, memoryview(buffer))
        buffer[:] = b"b" * len(buffer)
        assert device.read_at(3 * KIB, 10 * KIB) == b"a" * 10 * KIB

    def test_what_was_read_is_not_changed_by_a_write(
        self, device: BlockDevice, content: bytes
    ) -> None:
        """Bytes handed out earlier, even as a view, keep their value."""
        device.write_at(0, b"1" * 8 * KIB)
        early = device.try_read_at(0, 8 * KIB)
        device.write_at(0, b"2" * 8 * KIB)
        device.zero_at(4 * KIB, 4 * KIB)
        assert early is None or bytes(early) == b"1" * 8 * KIB

    def test_writes_outside_the_disk_change_nothing(
        self, device: BlockDevice, content: bytes
    ) -> None:
        """A write or zero that does not fit is refused whole, also the part that would fit."""
        size = len(content)
        for offset in (size, size - 1, -1, 1 << 60):
            with pytest.raises(OutOfRangeError):
                device.write_at(offset, b"xx")
            with pytest.raises(OutOfRangeError):
                device.zero_at(offset, 2)
        with pytest.raises(OutOfRangeError):
            device.zero_at(0, size + 1)
        assert_shows(device, content)

    def test_the_whole_disk_can_be_zeroed(self, device: BlockDevice, content: bytes) -> None:
        """Zeroing everything leaves zeros; writing into them leaves the rest."""
        device.zero_at(0, len(content))
        assert_shows(device, bytes(len(content)))
        device.write_at(5000, b"x")
        model = bytearray(len(content))
        model[5000] = ord("x")
        assert_shows(device, model)

    def test_neighbours_in_one_block_are_written_at_once(self, device: BlockDevice) -> None:
        """Threads writing odd pieces of the same blocks, and flushing, lose none of them."""
        piece, pieces = 123, 400

        def write(number: int) -> None:
            device.write_at(number * piece, bytes((number % 251 + 1,)) * piece)
            if number % 16 == 0:
                device.flush()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(pieces)))
        expected = b"".join(bytes((number % 251 + 1,)) * piece for number in range(pieces))
        assert device.read_at(0, piece * pieces) == expected
