"""The overlay against a bytearray: any operations, reopened at any time, over tiny segments."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from appliance.blocks import overlay_durability
from appliance.blocks.extents import ExtentKind
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_map import Geometry
from appliance.blocks.overlay_session import Identity
from tests.contract.block_reader import sample_content
from tests.support.memory_device import MemoryDevice
from tests.support.power_cut import without_syncs

BLOCK = 512
TINY = Geometry(block_bytes=BLOCK, segment_blocks=4)
LARGEST = 24 * BLOCK
IDENTITY: Identity = {"point_id": "p", "disk": 0}

offsets = st.one_of(
    st.integers(0, LARGEST), st.integers(0, LARGEST // BLOCK).map(lambda block: block * BLOCK)
)


class OverlayMachine(RuleBasedStateMachine):
    """`model` is what the disk must show after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.parent = Path(tempfile.mkdtemp(prefix="overlay-model-"))
        self.folder = self.parent / "session"
        # Compact as early as there is anything to compact, so that the tests cross it all the time.
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(overlay_durability, "_COMPACT_MIN_RECORDS", 4)
        without_syncs(self.patches)

    @initialize(size=st.sampled_from([0, 1, 700, 4 * BLOCK, 17 * BLOCK, LARGEST - 100, LARGEST]))
    def create(self, size: int) -> None:
        self.base_content = sample_content(size + 1)[:size]
        self.model = bytearray(self.base_content)
        self.overlay = Overlay.create(self.folder, self.base(), IDENTITY, TINY)

    def base(self) -> MemoryDevice:
        return MemoryDevice(self.base_content)

    def clip(self, offset: int, length: int) -> tuple[int, int]:
        offset = min(offset, len(self.model))
        return offset, min(length, len(self.model) - offset)

    @rule(offset=offsets, length=offsets, fill=st.integers(1, 255))
    def write(self, offset: int, length: int, fill: int) -> None:
        offset, length = self.clip(offset, length)
        data = bytes((fill + position) % 256 for position in range(length))
        self.overlay.write_at(offset, data)
        self.model[offset : offset + length] = data

    @rule(offset=offsets, length=offsets)
    def zero(self, offset: int, length: int) -> None:
        offset, length = self.clip(offset, length)
        self.overlay.zero_at(offset, length)
        self.model[offset : offset + length] = bytes(length)

    @rule()
    def flush(self) -> None:
        self.overlay.flush()

    @rule()
    def reopen(self) -> None:
        self.overlay.close()
        self.overlay = Overlay.open(self.folder, self.base(), IDENTITY)

    @rule()
    def reopen_a_copy_of_the_files(self) -> None:
        """What a kill after a flush would leave is complete."""
        self.overlay.flush()
        copy = self.parent / "copy"
        shutil.copytree(self.folder, copy)
        found = Overlay.open(copy, self.base(), IDENTITY)
        assert found.read_at(0, len(self.model)) == self.model
        assert found.stats().dirty_bytes == self.overlay.stats().dirty_bytes
        found.discard()
        assert not copy.exists()

    @rule(offset=offsets, length=offsets)
    def read(self, offset: int, length: int) -> None:
        offset, length = self.clip(offset, length)
        expected = bytes(self.model[offset : offset + length])
        assert self.overlay.read_at(offset, length) == expected
        at_once = self.overlay.try_read_at(offset, length)
        assert at_once is None or bytes(at_once) == expected
        buffer = bytearray(b"?" * length)
        self.overlay.read_into(offset, memoryview(buffer))
        assert buffer == expected

    @invariant()
    def shows_the_model(self) -> None:
        if not hasattr(self, "overlay"):
            return
        assert self.overlay.read_at(0, len(self.model)) == self.model
        covered = 0
        for extent in self.overlay.map_extents(0, len(self.model)):
            assert extent.offset == covered
            covered = extent.end
            if extent.kind is ExtentKind.ZERO:
                assert not any(self.model[extent.offset : extent.end])
        assert covered == len(self.model)

    def teardown(self) -> None:
        self.patches.undo()
        if hasattr(self, "overlay"):
            self.overlay.close()
        shutil.rmtree(self.parent)


TestOverlayModel = OverlayMachine.TestCase
TestOverlayModel.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
