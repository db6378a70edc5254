"""Hot-added devices: exact reads whatever the alignment, writes that are there after close."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from vmware.errors import TransportError
from vmware.transports import direct_device
from vmware.transports.contract import OutOfDiskError
from vmware.transports.direct_device import DirectReader, DirectWriter

SIZE = 3 * (1 << 20) + 512


def nothing() -> None: ...


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "sdb"
    path.write_bytes(random.Random(1).randbytes(SIZE))
    return path


def test_a_device_that_fails_is_a_transport_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another way to read the disk may be tried; also when a part in the pool fails."""
    reader = DirectReader(path, SIZE, nothing)

    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", broken)
        for length in (512, SIZE):
            with pytest.raises(TransportError, match="Input/output"):
                reader.read_at(0, length)
    assert reader.read_at(0, SIZE) == path.read_bytes()
    reader.close()


def test_a_device_that_ends_early_is_a_transport_error(path: Path) -> None:
    """Never short, never padded."""
    reader = DirectReader(path, SIZE + 4096, nothing)
    with pytest.raises(TransportError, match="ends at"):
        reader.read_at(SIZE, 512)
    reader.close()


def test_a_file_system_without_direct_io_is_read_plainly(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tmpfs, for one."""
    real = os.open

    def refuse(name: Path, flags: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(name, flags)

    monkeypatch.setattr(direct_device.os, "open", refuse)
    reader = DirectReader(path, SIZE, nothing)
    assert reader.read_at(100, 5000) == path.read_bytes()[100:5100]
    reader.close()


def test_a_device_that_cannot_be_opened_releases_nothing(tmp_path: Path) -> None:
    """Whoever attached it still holds it."""
    released: list[bool] = []
    for kind in (DirectReader, lambda *a: DirectWriter(*a, empty=True)):
        with pytest.raises(TransportError):
            kind(tmp_path / "gone", SIZE, lambda: released.append(True))
    assert released == []


def test_a_closed_device_is_not_read(path: Path) -> None:
    """Its descriptor may be somebody else's by then."""
    reader = DirectReader(path, SIZE, nothing)
    reader.close()
    with pytest.raises(TransportError, match="closed"):
        reader.read_at(0, 512)


@pytest.mark.parametrize("empty", [True, False])
def test_writes_and_zeros_are_on_the_device(
    tmp_path: Path, empty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order, over each other, whether the disk was empty or not."""
    monkeypatch.setattr(direct_device, "_STRETCH_BYTES", 1 << 16)
    path = tmp_path / "sdb"
    rng = random.Random(2)
    model = bytearray(SIZE) if empty else bytearray(rng.randbytes(SIZE))
    path.write_bytes(model)
    writer = DirectWriter(path, SIZE, nothing, empty=empty)
    for _ in range(100):
        offset = rng.randrange(SIZE)
        length = min(rng.randrange(1 << rng.randrange(1, 21)), SIZE - offset)
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            writer.write_at(offset, data)
        else:
            data = bytes(length)
            writer.zero_at(offset, length)
        model[offset : offset + length] = data
    writer.close()
    assert path.read_bytes() == model


def test_zeros_on_an_empty_disk_write_nothing(tmp_path: Path) -> None:
    """A thin disk stays thin, and a restore is not slowed down by what is not there."""
    path = tmp_path / "sdb"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    writer = DirectWriter(path, 1 << 30, nothing, empty=True)
    writer.zero_at(0, 1 << 30)
    writer.close()
    assert path.stat().st_blocks == 0


def test_writes_outside_of_the_disk_are_refused(path: Path) -> None:
    """Nothing is written then."""
    writer = DirectWriter(path, SIZE, nothing, empty=False)
    with pytest.raises(OutOfDiskError):
        writer.write_at(SIZE - 1, b"ab")
    with pytest.raises(OutOfDiskError):
        writer.zero_at(-1, 1)
    writer.close()


def test_a_flush_that_fails_is_told_and_the_disk_is_given_back(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Durable or an error, and never left attached."""
    released: list[bool] = []
    writer = DirectWriter(path, SIZE, lambda: released.append(True), empty=False)

    def broken(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", broken)
    with pytest.raises(TransportError, match="No space"):
        writer.close()
    writer.close()
    assert released == [True]
