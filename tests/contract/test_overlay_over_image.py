"""A writable recovery session as it is in use: an overlay over a disk of a recovery point."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from appliance.base.units import KIB
from appliance.blocks.extents import Extent
from appliance.blocks.layers import PrefetchReader, RecordingReader
from appliance.blocks.overlay import Overlay
from appliance.blocks.overlay_map import Geometry
from tests.contract.block_device import BlockDeviceSuite
from tests.contract.block_reader import MakeReader
from tests.contract.test_image_reader import stored


class TestOverlayOverImage(BlockDeviceSuite):
    """With the layers of a verification boot in between and a cache of a few chunks."""

    @pytest.fixture
    def make(self, tmp_path: Path) -> MakeReader:
        numbers = itertools.count()

        def make(content: bytes) -> Overlay:
            number = next(numbers)
            folder = tmp_path / f"r{number}"
            image = stored(folder, content, cache_bytes=512 * KIB, secret=None)
            base = RecordingReader(PrefetchReader(image, [Extent(0, len(content))]))
            geometry = Geometry(segment_blocks=16)
            return Overlay.create(tmp_path / f"s{number}", base, {}, geometry)

        return make
