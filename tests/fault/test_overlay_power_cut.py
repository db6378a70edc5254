"""The overlay after a power cut at every system call it makes."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from appliance.blocks import overlay_durability
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_durability import Durability
from appliance.blocks.overlay_errors import OverlayMissingError
from appliance.blocks.overlay_map import Geometry
from tests.contract.block_reader import sample_content
from tests.support.memory_device import MemoryDevice
from tests.support.power_cut import SECTOR, PowerCutRecorder, without_syncs

BLOCK = 2 * SECTOR
TINY = Geometry(block_bytes=BLOCK, segment_blocks=4)
SIZE = 13 * BLOCK + 300
BASE = sample_content(SIZE, seed=3)
OPERATIONS = 120


@dataclass
class History:
    """What the disk showed after each operation, and when it was promised."""

    recorder: PowerCutRecorder
    rng: random.Random
    versions: list[tuple[int, bytes]] = field(default_factory=lambda: [(0, BASE)])
    acknowledged: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])

    def change(self, overlay: Overlay) -> None:
        offset = self.rng.randrange(SIZE)
        if self.rng.random() < 0.5:
            offset = offset // BLOCK * BLOCK
        length = min(SIZE - offset, self.rng.choice([1, 100, SECTOR, BLOCK, 3 * BLOCK, SIZE]))
        data = self.rng.randbytes(length) if self.rng.random() < 0.6 else bytes(length)
        after = bytearray(self.versions[-1][1])
        after[offset : offset + length] = data
        # Recorded before it begins: a cut inside the operation may show part of it.
        self.versions.append((self.recorder.clock, bytes(after)))
        if any(data):
            overlay.write_at(offset, data)
        else:
            overlay.zero_at(offset, length)

    def flush(self, overlay: Overlay) -> None:
        promised = len(self.versions) - 1
        overlay.flush()
        self.acknowledged.append((self.recorder.clock, promised))

    def allowed(self, cut: int) -> list[bytes]:
        first = max(promised for when, promised in self.acknowledged if when <= cut)
        return [image for began, image in self.versions[first:] if began <= cut]


def record(folder: Path, seed: int) -> tuple[History, int]:
    """Run a session on `folder`; return its history and when `create` had returned."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        recorder = PowerCutRecorder(folder)
        recorder.install(monkeypatch)
        history = History(recorder, random.Random(seed))
        overlay = Overlay.create(folder, MemoryDevice(BASE), {}, TINY)
        created = recorder.clock

        def change_during_sync() -> None:
            if history.rng.random() < 0.3:
                history.change(overlay)

        recorder.during_sync = change_during_sync
        for _ in range(OPERATIONS):
            if history.rng.random() < 0.25:
                history.flush(overlay)
            else:
                history.change(overlay)
        overlay.discard()
    return history, created


def assert_one_of(found: bytes, allowed: list[bytes], why: str) -> None:
    assert len(found) == SIZE
    for start in range(0, SIZE, SECTOR):
        sector = found[start : start + SECTOR]
        assert any(sector == image[start : start + SECTOR] for image in allowed), (why, start)


@pytest.mark.parametrize("seed", range(6))
def test_a_power_cut_keeps_every_flushed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Cut anywhere, the session opens; each sector shows what was flushed or something newer."""
    monkeypatch.setattr(overlay_durability, "_COMPACT_MIN_RECORDS", 20)
    history, created = record(tmp_path / "recorded", seed)
    folder = tmp_path / "cut"
    without_syncs(monkeypatch)
    for cut in range(1, history.recorder.clock + 1):
        for mode in ("lost", "kept", "mixed", "mixed"):
            why = f"seed {seed}, cut {cut} of {history.recorder.clock}, {mode}"
            rng = random.Random(why)
            files = history.recorder.surviving_files(cut, rng, mode)
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            try:
                overlay = Overlay.open(folder, MemoryDevice(BASE), {})
            except OverlayMissingError:
                assert cut < created, why
            else:
                assert_one_of(overlay.read_at(0, SIZE), history.allowed(cut), why)
                if rng.random() < 0.1:
                    overlay = assert_goes_on(overlay, folder, why)
                overlay.discard()
            shutil.rmtree(folder, ignore_errors=True)


def assert_goes_on(overlay: Overlay, folder: Path, why: str) -> Overlay:
    """What survived is a session like any other: written, closed, opened, it shows the same."""
    overlay.write_at(BLOCK + 7, b"after the cut")
    expected = overlay.read_at(0, SIZE)
    overlay.close()
    overlay = Overlay.open(folder, MemoryDevice(BASE), {})
    assert overlay.read_at(0, SIZE) == expected, why
    return overlay


def test_the_recorder_finds_a_missing_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge can fail: data that is named in the journal before it is synced is caught."""

    def commit_without_data_sync(durability: Durability) -> None:
        with durability._lock:
            changes = durability._map.take_changes()
        if changes:
            durability._journal.append(changes)

    monkeypatch.setattr(Durability, "_commit", commit_without_data_sync)
    history, created = record(tmp_path / "recorded", seed=0)
    violations = 0
    without_syncs(monkeypatch)
    folder = tmp_path / "cut"
    for cut in range(created, history.recorder.clock + 1):
        folder.mkdir()
        for name, content in history.recorder.surviving_files(
            cut, random.Random(cut), "mixed"
        ).items():
            (folder / name).write_bytes(content)
        try:
            overlay = Overlay.open(folder, MemoryDevice(BASE), {})
            assert_one_of(overlay.read_at(0, SIZE), history.allowed(cut), "")
        except Exception:  # an error and wrong bytes both show that the cut was noticed
            violations += 1
        shutil.rmtree(folder, ignore_errors=True)
    assert violations > 0
