"""The words on a screen in VGA text mode, from the cells of its memory. Pure.

A cell is two bytes: a character of code page 437 and its colours. Boot loaders, the BIOS and many
kernels that failed early write this way, so their last words can be read without guessing at
pixels. In a graphics mode the same memory holds something else; what is not text is dropped.
Source: IBM VGA text mode, 80 x 25 cells at B8000h; QEMU's monitor command `xp`.
"""

from __future__ import annotations

import re

TEXT_ADDRESS = 0xB8000
_COLUMNS, _ROWS = 80, 25
TEXT_CELLS = _COLUMNS * _ROWS
_CELL = re.compile(r"\b0x([0-9a-f]{4})\b")
_TEXT_SHARE_LEAST = 0.95  # of cells that are blank, ASCII or a drawing character
_DRAWINGS = range(0xB0, 0xE0)


def read_text_screen(dump: str) -> list[str]:
    """Return the lines of a dump of `TEXT_CELLS` half-words, without blank ones at either end."""
    cells = [int(cell, 16) & 0xFF for cell in _CELL.findall(dump)]
    if len(cells) != TEXT_CELLS:
        return []
    readable = sum(1 for cell in cells if _is_text(cell))
    if readable < _TEXT_SHARE_LEAST * TEXT_CELLS:
        return []
    text = "".join(chr(cell) if 0x20 <= cell < 0x7F else " " for cell in cells)
    lines = [text[row * _COLUMNS : (row + 1) * _COLUMNS].rstrip() for row in range(_ROWS)]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines


def _is_text(cell: int) -> bool:
    return cell == 0 or 0x20 <= cell < 0x7F or cell in _DRAWINGS
