"""What of a guest's output is only its echo of the command that was typed. Pure.

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

_CONTROL_SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()].|[=>])")
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


def _bare(text: str) -> str:
    text = _OVERWRITTEN.sub("", _CONTROL_SEQUENCE.sub("", text))
    return "".join(letter for letter in text if letter.isprintable() and not letter.isspace())
