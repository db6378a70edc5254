"""streamOptimized VMDKs: what is written is read back, by us and by qemu; damage is refused."""

from __future__ import annotations

import hashlib
import io
import random
import subprocess
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.base.units import GIB, KIB, MIB, TIB
from tests.contract.block_reader import sample_content
from tests.support.needs import needs
from vmware.errors import TransportError, VsphereError
from vmware.stream_optimized_format import (
    GD_AT_END,
    GRAIN_MARKER,
    Header,
    MarkerKind,
    pack_header,
    pack_marker,
)
from vmware.stream_optimized_reader import StreamOptimizedReader
from vmware.stream_optimized_writer import StreamOptimizedWriter
from vmware.vmdk_descriptor import VmdkError, parse_descriptor

_GRAIN = 64 * KIB


def _write(content: bytes, *, step: int = MIB, level: int = 1) -> bytes:
    stream = bytearray()
    writer = StreamOptimizedWriter(stream.extend, len(content), level=level)
    for start in range(0, len(content), step):
        writer.write_at(start, memoryview(content)[start : start + step])
    writer.close()
    assert writer.stream_bytes == len(stream)
    return bytes(stream)


def _read(stream: bytes) -> bytes:
    reader = StreamOptimizedReader(io.BytesIO(stream).read)
    content = bytearray(reader.capacity_bytes)
    for grain in reader.grains():
        content[grain.offset : grain.end] = grain.inflate()
    assert reader.stream_bytes == len(stream)
    return bytes(content)


@pytest.mark.parametrize("size_bytes", [512, _GRAIN, _GRAIN + 512, 3 * MIB + 5 * KIB, 40 * MIB])
@pytest.mark.parametrize("step", [7 * KIB + 3, 10 * MIB])
def test_what_is_written_is_read_back(size_bytes: int, step: int) -> None:
    """Whatever the size of the disk and of the writes."""
    content = sample_content(size_bytes)
    assert _read(_write(content, step=step)) == content


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 2 * MIB), st.integers(1, 200_000)), max_size=8), st.data())
def test_scattered_writes_leave_zeros_between(
    places: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Any ascending writes give the disk that a byte array would."""
    size = 2 * MIB + 512
    model, stream, at = bytearray(size), bytearray(), 0
    writer = StreamOptimizedWriter(stream.extend, size)
    rng = random.Random(data.draw(st.integers(0, 1000)))
    for offset, length in sorted(places):
        offset = max(offset, at)
        length = min(length, size - offset)
        piece = bytes(length) if rng.random() < 0.3 else rng.randbytes(length)
        writer.write_at(offset, piece)
        model[offset : offset + length] = piece
        at = offset + length
    writer.close()
    assert _read(bytes(stream)) == model


def test_empty_grains_are_not_in_the_stream() -> None:
    """A terabyte of zeros, and of nothing written, costs nothing."""
    stream = bytearray()
    writer = StreamOptimizedWriter(stream.extend, TIB)
    writer.write_at(0, bytes(4 * MIB))
    writer.write_at(TIB - 512, b"\x01" * 512)
    writer.close()
    assert len(stream) < 400 * KIB  # of which the directory is 128
    reader = StreamOptimizedReader(io.BytesIO(bytes(stream)).read)
    assert [(grain.offset, grain.length) for grain in reader.grains()] == [(TIB - _GRAIN, _GRAIN)]


def test_the_stream_is_what_it_was() -> None:
    """Stored, not deflated, so that no version of zlib changes a byte: the format is frozen."""
    stream = _write(sample_content(3 * MIB + 512), level=0)
    digest = hashlib.sha256(stream).hexdigest()
    assert digest == "00cd1f66b29b7c221c4487a50e0708c1aa7596afba1f68b5d60928464e1422b1"


def test_the_front_holds_a_descriptor() -> None:
    """Tools that look only at the first sectors find what the disk is."""
    stream = _write(bytes(1 * GIB // 16))
    descriptor = parse_descriptor(stream[512 : 512 + 20 * 512])
    assert descriptor.create_type == "streamOptimized"
    assert descriptor.size_bytes == 1 * GIB // 16


@pytest.mark.parametrize("offset", [0, 4095])
def test_going_back_is_refused(offset: int) -> None:
    """A stream is written once, from front to back, inside the disk."""
    writer = StreamOptimizedWriter(lambda _data: None, MIB)
    writer.write_at(0, bytes(4096))
    with pytest.raises(VmdkError):
        writer.write_at(offset, b"x")
    with pytest.raises(VmdkError):
        writer.write_at(MIB, b"x")
    writer.abandon()


@pytest.mark.parametrize("capacity", [0, -512, 511, 65 << 40])
def test_a_disk_that_no_vmdk_holds_is_refused(capacity: int) -> None:
    """Before anything is written."""
    with pytest.raises(VmdkError):
        StreamOptimizedWriter(lambda _data: pytest.fail("written"), capacity)


def test_an_error_of_the_sink_passes_and_closing_is_still_possible() -> None:
    """A host that goes away ends the writer without a thread left."""

    def sink(data: bytes) -> None:
        if len(data) > 600 and not data.startswith(b"KDMV"):
            raise TransportError("the host went away")

    writer = StreamOptimizedWriter(sink, 20 * MIB)
    with pytest.raises(TransportError):
        writer.write_at(0, random.Random(1).randbytes(20 * MIB))
    writer.abandon()
    writer.close()


@pytest.mark.integration
@pytest.mark.parametrize("size_bytes", [3 * MIB + 512, 70 * MIB])
def test_qemu_reads_what_we_write(tmp_path: Path, size_bytes: int) -> None:
    """`qemu-img check` finds nothing, `compare` no difference."""
    needs("qemu-img")
    content = sample_content(size_bytes)
    vmdk, raw = tmp_path / "disk.vmdk", tmp_path / "disk.raw"
    vmdk.write_bytes(_write(content))
    raw.write_bytes(content)
    for command in (["check", vmdk], ["compare", "-f", "vmdk", "-F", "raw", vmdk, raw]):
        ran = subprocess.run(["qemu-img", *command], capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.integration
def test_we_read_what_qemu_writes(tmp_path: Path) -> None:
    """A stream that somebody else's program made."""
    needs("qemu-img")
    content = sample_content(3 * MIB + 512)
    vmdk, raw = tmp_path / "disk.vmdk", tmp_path / "disk.raw"
    raw.write_bytes(content)
    command = ["qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk]
    subprocess.run(command, check=True, capture_output=True)
    reader = StreamOptimizedReader(io.BytesIO(vmdk.read_bytes()).read)
    read = bytearray(reader.capacity_bytes)
    for grain in reader.grains():
        read[grain.offset : grain.end] = grain.inflate()
    assert read == content


# Damage

_CONTENT = sample_content(1 * MIB)
_STREAM = _write(_CONTENT)
_FRONT = 128 * 512


def _header(**fields: int) -> bytes:
    values = {
        "capacity": 2048,
        "grain": 128,
        "descriptor": 1,
        "descriptor_size": 20,
        "directory": GD_AT_END,
        "overhead": 128,
    }
    return pack_header(Header(**{**values, **fields})).ljust(_FRONT, b"\0")


def _grain(lba: int, raw: bytes, size: int | None = None) -> bytes:
    data = zlib.compress(raw)
    record = GRAIN_MARKER.pack(lba, len(data) if size is None else size) + data
    return record.ljust(-(-len(record) // 512) * 512, b"\0")


_END = pack_marker(MarkerKind.END_OF_STREAM, 0)
_FULL = b"\x01" * _GRAIN


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        _STREAM[:511],
        _STREAM[:-512],
        _STREAM[: len(_STREAM) // 2],
        _header(),
        _header() + _grain(0, _FULL),
    ],
)
def test_a_stream_that_ends_early_is_an_error(stream: bytes) -> None:
    """At any sector: what is missing could be data."""
    with pytest.raises(TransportError):
        _read(stream)


def test_every_cut_is_noticed() -> None:
    """Also one in the middle of a sector."""
    for end in range(0, len(_STREAM), 4099):
        with pytest.raises(TransportError):
            _read(_STREAM[:end])


@pytest.mark.parametrize(
    "stream",
    [
        b"COWD" + bytes(508),
        bytes(512),
        _header(capacity=0),
        _header(capacity=1 << 60),
        _header(grain=0),
        _header(grain=100),
        _header(grain=1 << 20),
        _header(overhead=0),
        _header(overhead=1 << 40),
        _header(descriptor=1 << 40),
        _header().replace(b"\n \r\n", b"\n \n\n", 1),
        _header() + _grain(128, _FULL) + _grain(0, _FULL) + _END,
        _header() + _grain(0, _FULL) + _grain(0, _FULL) + _END,
        _header() + _grain(64, _FULL) + _END,
        _header() + _grain(2048, _FULL) + _END,
        _header() + _grain(1 << 63, _FULL) + _END,
        _header() + _grain(0, _FULL, size=1 << 30) + _END,
        _header() + _grain(0, _FULL, size=20) + _END,
        _header() + _grain(0, _FULL + b"x") + _END,
        _header() + _grain(0, _FULL[:-1]) + _END,
        _header() + _grain(0, bytes(64 * MIB)) + _END,
        _header() + pack_marker(MarkerKind.GRAIN_TABLE, 1 << 40) + _END,
        _header() + pack_marker(MarkerKind.FOOTER, 2) + bytes(1024) + _END,
        _header() + (b"\0" * 12 + b"\x09").ljust(512, b"\0"),
    ],
)
def test_a_malformed_stream_is_refused(stream: bytes) -> None:
    """Sizes out of bounds, grains out of order or outside, bombs: a typed error."""
    with pytest.raises(VmdkError):
        _read(stream)


def test_a_bomb_does_not_grow() -> None:
    """A grain that inflates to gigabytes costs no more memory than a sound one."""
    bomb = zlib.compress(bytes(256 * MIB), 9)
    stream = _header(grain=2048, capacity=1 << 20) + (GRAIN_MARKER.pack(0, len(bomb)) + bomb).ljust(
        -(-(12 + len(bomb)) // 512) * 512, b"\0"
    )
    tracemalloc.start()
    with pytest.raises(VmdkError):
        _read_grains(stream)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * MIB


def _read_grains(stream: bytes) -> int:
    reader = StreamOptimizedReader(io.BytesIO(stream).read)
    return sum(len(grain.inflate()) for grain in reader.grains())


def _flip(data: bytearray, rng: random.Random) -> None:
    at = rng.choice([rng.randrange(512), rng.randrange(_FRONT, len(data))])
    data[at] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random) -> None:
    at = rng.choice([rng.randrange(508), rng.randrange(_FRONT, len(data) - 8) // 512 * 512])
    data[at : at + 4] = rng.choice([0, 1, 0xFFFFFFFF, 0x7FFFFFFF]).to_bytes(4, "little")


def _shift(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(_FRONT, len(data))
    del data[at : at + rng.choice([1, 512])]


@pytest.mark.parametrize("damage", [_flip, _number, _shift])
def test_damaged_streams_give_a_disk_or_a_typed_error(
    damage: Callable[[bytearray, random.Random], None],
) -> None:
    """Never another exception, never a disk of another size."""
    rng = random.Random(20260608)
    for _ in range(300):
        data = bytearray(_STREAM)
        for _ in range(rng.randrange(1, 4)):
            damage(data, rng)
        try:
            _read_grains(bytes(data))
        except VsphereError:
            continue
