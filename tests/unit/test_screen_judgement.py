"""Screenshots judged by their colours, text screens and serial lines by their words."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.sandbox.errors import PictureError
from appliance.sandbox.last_words import (
    BOOT_FILE_MISSING,
    EMERGENCY_SHELL,
    KERNEL_PANIC,
    NO_BOOTABLE_DISK,
    find_last_words,
)
from appliance.sandbox.picture import Screen, judge_picture
from appliance.sandbox.png import Pixels, read_png
from appliance.sandbox.text_screen import TEXT_CELLS, read_text_screen
from tests.support.png import chunk, make_png

WIDTH, HEIGHT = 640, 400
WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (170, 170, 170)


def canvas(colour: tuple[int, int, int]) -> Pixels:
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def write_text(pixels: Pixels, letters: int, colour: tuple[int, int, int]) -> Pixels:
    """Blocks of the size of letters, with smoothed edges."""
    background = pixels[0, 0].astype(int)
    for number in range(letters):
        row, column = 20 + 16 * (number // 60), 20 + 9 * (number % 60)
        pixels[row : row + 8, column : column + 4] = colour
        pixels[row : row + 8, column + 4] = (background + np.array(colour)) // 2
    return pixels


def judged(pixels: Pixels) -> Screen:
    return judge_picture(make_png([row.tobytes() for row in pixels])).screen


@pytest.mark.parametrize("colour", [BLACK, WHITE, (0, 120, 215)])
def test_one_colour_is_blank(colour: tuple[int, int, int]) -> None:
    """A screen that is off, or on with nothing on it, also in the blue of a blue screen."""
    assert judged(canvas(colour)) is Screen.BLANK


def test_a_cursor_alone_is_blank_and_a_prompt_is_not() -> None:
    """Between the two lies the bound."""
    cursor = canvas(BLACK)
    cursor[16:18, 0:8] = GREY
    assert judged(cursor) is Screen.BLANK
    assert judged(write_text(canvas(BLACK), 6, GREY)) is Screen.SHOWS_SOMETHING


@pytest.mark.parametrize("blue", [(0, 0, 170), (0, 0, 128), (17, 115, 170), (0, 120, 215)])
def test_white_letters_on_a_blue_of_windows_are_a_crash(blue: tuple[int, int, int]) -> None:
    """From NT to Windows 11's classic, and with a QR code."""
    assert judged(write_text(canvas(blue), 300, WHITE)) is Screen.CRASHED
    with_code = write_text(canvas(blue), 300, WHITE)
    noise = np.random.default_rng(7).integers(0, 2, (80, 80, 1), np.uint8)
    with_code[300:380, 40:120] = np.where(noise == 1, WHITE, blue)
    assert judged(with_code) is Screen.CRASHED


def test_a_blue_desktop_with_icons_is_no_crash() -> None:
    """A task bar and coloured icons lie off the line between blue and white."""
    desktop = write_text(canvas((0, 120, 215)), 60, WHITE)
    desktop[370:, :] = (16, 16, 16)
    for number, colour in enumerate([(250, 200, 60), (60, 180, 70), (200, 40, 40)]):
        desktop[40 + 90 * number : 80 + 90 * number, 560:600] = colour
    assert judged(desktop) is Screen.SHOWS_SOMETHING


def test_a_text_console_and_a_photograph_show_something() -> None:
    """Neither much black nor many colours are suspicious."""
    assert judged(write_text(canvas(BLACK), 900, GREY)) is Screen.SHOWS_SOMETHING
    photograph = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    judgement = judge_picture(make_png([row.tobytes() for row in photograph]))
    assert judgement.screen is Screen.SHOWS_SOMETHING
    assert judgement.entropy_bits > 5 and judgement.colour_count > 1000


@pytest.mark.parametrize("filter_kind", range(5))
@pytest.mark.parametrize("colour", [0, 2, 3, 4, 6])
def test_every_kind_of_picture_is_read_as_it_was_made(colour: int, filter_kind: int) -> None:
    """All filters, and grey, colour and palette with and without alpha."""
    noise = random.Random(colour * 8 + filter_kind)
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    rows = [noise.randbytes(7 * channels) for _ in range(5)]
    palette = noise.randbytes(768) if colour == 3 else b""
    pixels = read_png(make_png(rows, colour=colour, palette=palette, filter_kind=filter_kind))
    assert pixels.shape == (5, 7, 3)
    for y, x in ((0, 0), (2, 3), (4, 6)):
        sample = rows[y][x * channels : (x + 1) * channels]
        expected = {
            0: sample * 3,
            2: sample,
            3: palette[sample[0] * 3 : sample[0] * 3 + 3],
            4: sample[:1] * 3,
            6: sample[:3],
        }[colour]
        assert pixels[y, x].tobytes() == expected


def test_a_picture_that_is_none_is_refused_before_it_takes_memory() -> None:
    """Sizes that lie, bombs, damage, and what is not read at all."""
    good = make_png([bytes(30)] * 10)
    huge = struct.pack(">IIBBBBB", 1 << 30, 1 << 30, 8, 2, 0, 0, 0)
    bomb = zlib.compress(bytes(1 << 24))
    signature = good[:8]
    wrong = [b"", b"GIF89a", good[:-4], good[:60], good[:50] + b"!" + good[51:]]
    wrong += [signature + chunk(b"IHDR", huge) + chunk(b"IEND", b"")]
    small = struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0)
    for data in (bomb, b"junk", zlib.compress(b"short"), zlib.compress(b"\x09" * 310)):
        parts = [(b"IHDR", small), (b"IDAT", data), (b"IEND", b"")]
        wrong.append(signature + b"".join(chunk(*part) for part in parts))
    wrong.append(signature + chunk(b"IHDR", small[:8] + b"\x10\2\0\0\0") + chunk(b"IEND", b""))
    wrong.append(signature + chunk(b"IEND", b""))
    for raw in wrong:
        with pytest.raises(PictureError):
            read_png(raw)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_no_bytes_make_the_reader_do_anything_but_refuse(noise: bytes, place: int) -> None:
    """A hostile picture costs a verdict."""
    good = make_png([bytes(30)] * 10)
    with contextlib.suppress(PictureError):
        read_png(good[:place] + noise + good[place + len(noise) :])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[    1.2] Kernel panic - not syncing: VFS: Unable to mount root fs", KERNEL_PANIC),
        ("error: file `/boot/vmlinuz' not found.", BOOT_FILE_MISSING),
        ("grub rescue>", BOOT_FILE_MISSING),
        ("grub>", BOOT_FILE_MISSING),
        ("BOOTMGR is missing", BOOT_FILE_MISSING),
        ("No bootable device.", NO_BOOTABLE_DISK),
        ("You are in emergency mode. After logging in, type", EMERGENCY_SHELL),
        ("(initramfs) ", EMERGENCY_SHELL),
    ],
)
def test_last_words_are_understood(line: str, reason: object) -> None:
    """The programs' own words, wherever they stand."""
    found = find_last_words(["booting", line, "and then nothing"])
    assert found is not None and found[0] is reason and found[1] == line.strip()


def test_ordinary_lines_are_no_last_words() -> None:
    """A guest that works says nothing of the kind; the gravest is named first."""
    lines = ["GNU GRUB  version 2.06", "Debian GNU/Linux 12 web ttyS0", "web login: "]
    assert find_last_words(lines) is None
    both = find_last_words(["grub rescue>", "Kernel panic - not syncing: x"])
    assert both is not None and both[0] is KERNEL_PANIC


def dump_of(text: str) -> str:
    cells = text.encode("latin-1").ljust(TEXT_CELLS, b"\0")
    return "\n".join(
        f"00000000000b{8000 + at:04x}: "
        + " ".join(f"0x07{cell:02x}" for cell in cells[at : at + 8])
        for at in range(0, TEXT_CELLS, 8)
    )


def test_a_text_screen_is_read_and_anything_else_is_not() -> None:
    """Lines of 80 cells; a graphics mode's bytes are no text."""
    screen = " " * 80 + "GNU GRUB".ljust(80) + "grub>"
    assert read_text_screen(dump_of(screen)) == ["GNU GRUB", "grub>"]
    assert read_text_screen(dump_of("\x03\x1f" * 500)) == []
    assert read_text_screen("0x0720 0x0720") == []
    assert read_text_screen("") == []
