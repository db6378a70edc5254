"""What of a guest's output is only its echo of the command that was typed, and what a line of it
looks like on a terminal. Pure.

    $ systemctl is-active nginx && echo ALL-\\r
    \\rIS-WELL                                      <- still the echo, not the answer

A shell with a line editor knows how wide its terminal is and breaks what it echoes there, each in
its own way: bash repeats a character behind a carriage return, busybox sends a line end, bash on a
terminal that can do nothing shows `<` and the end of the command. So lines are compared without
white space and control sequences, and put together until they make the command.
"""

from __future__ import annotations

import re
from enum import Enum

_CONTROL_SEQUENCE = re.compile(
    r"\x1b(?:\[(?P<numbers>[0-9;?]*)[ -/]*(?P<does>[@-~])|[()].|[=>]|\][^\x07\x1b]*(?:\x07|\x1b\\))"
)
_PIECE = re.compile(rf"{_CONTROL_SEQUENCE.pattern}|(?P<letter>.)", re.DOTALL)
_ERASES = ("K", "J")
_OVERWRITTEN = re.compile(r"[^\b]\x08|(\S)\r(?=\1)")


class Echo(Enum):
    ENDS = "ends"  # with this line the command has been echoed
    MAY_GO_ON = "may-go-on"  # what came last is how the command begins
    NONE = "none"


class EchoOfCommand:
    """Offer it the lines in the order in which they came."""

    def __init__(self, command: str) -> None:
        self._command = _bare(command)
        self._last = ""  # as long as the command at the most

    def look(self, line: str) -> Echo:
        _, scrolled, shown = line.rpartition("\r<")
        if scrolled and self._command.endswith(_bare(shown)):
            return Echo.ENDS
        length = len(self._command)
        self._last = (self._last + _bare(line))[-length:]
        if self._last == self._command:
            self._last = ""
            return Echo.ENDS
        begun = any(self._command.startswith(self._last[-n:]) for n in range(1, length))
        return Echo.MAY_GO_ON if self._last and begun else Echo.NONE


def shown(line: str) -> str:
    """The line as a terminal shows it in the end: control sequences do not show, nor does what
    was overwritten behind a carriage return or a backspace, or erased."""
    cells: list[str] = []
    at = 0
    for piece in _PIECE.finditer(line):
        letter = piece["letter"]
        if letter is None:
            if piece["does"] in _ERASES and piece["numbers"] in ("", "0", "2"):
                del cells[at:]
                if piece["numbers"] == "2":
                    cells = [" "] * at
        elif letter == "\r":
            at = 0
        elif letter == "\b":
            at = max(at - 1, 0)
        elif letter == "\t" or letter.isprintable():
            cells[at : at + 1] = letter
            at += 1
    return "".join(cells)


def _bare(text: str) -> str:
    text = _OVERWRITTEN.sub("", _CONTROL_SEQUENCE.sub("", text))
    return "".join(letter for letter in text if letter.isprintable() and not letter.isspace())
