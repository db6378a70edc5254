"""The host's picture of a screen, as a PNG that the product's own reader takes."""

from __future__ import annotations

import base64
import struct
from typing import Any

import numpy as np
import pytest

from appliance.sandbox.png import read_png
from hyperv.errors import ProtocolError
from hyperv.screenshot import take_screenshot
from tests.support.fake_hyperv_session import FakeHypervSession, quick_patience

VM = "11111111-2222-3333-4444-555555555555"


def shot(**changes: Any) -> bytes:
    pixels = struct.pack("<6H", 0x0000, 0xFFFF, 0xF800, 0x07E0, 0x001F, 0x8410)
    answer = {"width": 3, "height": 2, "pixels": base64.b64encode(pixels).decode()} | changes
    session = FakeHypervSession({"vm_screen": lambda _: answer})
    return take_screenshot(session, VM, quick_patience())


def test_a_picture_has_the_colours_of_the_screen() -> None:
    """Row by row from the top; black is black and white is white."""
    expected = [
        [[0, 0, 0], [255, 255, 255], [255, 0, 0]],
        [[0, 255, 0], [0, 0, 255], [131, 129, 131]],
    ]
    assert np.array_equal(read_png(shot()), np.array(expected, np.uint8))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 4}, "12 bytes for 4 x 2 pixels"),
        ({"pixels": "not base64!"}, "cannot be decoded"),
    ],
)
def test_a_picture_of_another_size_than_it_says_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    """Instead of a picture that shows something else."""
    with pytest.raises(ProtocolError, match=words):
        shot(**changes)
