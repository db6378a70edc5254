"""What the picture of a guest's screen says: something, nothing, or that the system crashed. Pure.

Only statistics of colours, no reading of text: a blank screen is one colour but for a cursor; a
blue screen of Windows is one of its known blues, and everything on it lies between that blue and
white (letters, a QR code), which no desktop of that colour does. What a crashed Linux says stands
on its serial line and in text mode on its screen: `last_words` reads that.
Colours: #0000AA and #000080 up to Windows 7, #1173AA Windows 8, #0078D7 from Windows 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from appliance.sandbox.png import Pixels, read_png

_BLANK_SHARE_MOST = 0.0003  # of pixels that differ: a text cursor is 0.0001, "login:" is 0.0006
_CRASH_BLUES = ((0, 0, 170), (0, 0, 128), (17, 115, 170), (0, 120, 215))
_COLOUR_NEAR = 12  # per channel: palettes of emulated screens round
_CRASH_BLUE_SHARE_LEAST = 0.55
_CRASH_TEXT_SHARE_LEAST = 0.004
_CRASH_OTHER_SHARE_MOST = 0.01


Colours = NDArray[np.int32]


class Screen(StrEnum):
    SHOWS_SOMETHING = "shows-something"
    BLANK = "blank"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenJudgement:
    screen: Screen
    width: int
    height: int
    colour_count: int
    entropy_bits: float  # of brightness, 0 to 8
    main_colour_share: float

    @property
    def text(self) -> str:
        return (
            f"{self.screen}: {self.width} x {self.height}, {self.colour_count} colours, "
            f"entropy {self.entropy_bits:.2f} bits, {self.main_colour_share:.2%} in one colour"
        )


def judge_picture(png: bytes) -> ScreenJudgement:
    """Raises PictureError: it cannot be read as a picture."""
    pixels = read_png(png)
    values = pixels.astype(np.uint32)
    packed = (values[:, :, 0] << 16 | values[:, :, 1] << 8 | values[:, :, 2]).ravel()
    colours, counts = np.unique(packed, return_counts=True)
    main_share = float(counts.max() / packed.size)
    if 1 - main_share < _BLANK_SHARE_MOST:
        screen = Screen.BLANK
    elif _is_blue_screen(pixels):
        screen = Screen.CRASHED
    else:
        screen = Screen.SHOWS_SOMETHING
    return ScreenJudgement(
        screen=screen,
        width=pixels.shape[1],
        height=pixels.shape[0],
        colour_count=len(colours),
        entropy_bits=_entropy(pixels),
        main_colour_share=main_share,
    )


def _is_blue_screen(pixels: Pixels) -> bool:
    flat = pixels.reshape(-1, 3).astype(np.int32)
    for blue in _CRASH_BLUES:
        background = np.abs(flat - blue).max(axis=1) <= _COLOUR_NEAR
        if background.mean() < _CRASH_BLUE_SHARE_LEAST:
            continue
        rest = flat[~background]
        if len(rest) < _CRASH_TEXT_SHARE_LEAST * len(flat):
            return False
        other = ~_are_between(rest, np.array(blue, np.int32))
        return float(other.sum()) <= _CRASH_OTHER_SHARE_MOST * len(flat)
    return False


def _are_between(colours: Colours, blue: Colours) -> NDArray[np.bool_]:
    """Which of them are a mixture of `blue` and white, as smoothed letters are."""
    way = 255 - blue
    share = ((colours - blue) @ way) / float(way @ way)
    nearest = blue + np.clip(share, 0, 1)[:, None] * way
    return np.asarray(np.abs(colours - nearest).max(axis=1) <= 2 * _COLOUR_NEAR)


def _entropy(pixels: Pixels) -> float:
    counts = np.bincount(pixels.mean(axis=2).astype(np.uint8).ravel(), minlength=256)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0
