"""Commands on a guest's serial console: only what the guest answers is an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import pytest

from appliance.base.clock import SystemClock
from appliance.base.run_context import CancelToken
from appliance.sandbox.console import Console
from appliance.sandbox.machine import Machine
from appliance.sandbox.serial_script import parse_script

COMMAND = "/usr/bin/false --check-the-database-thoroughly /var/lib/thing && echo ALL-IS-WELL"
PROMPT = b"root@holdfast-guest:~# "
BASH = (
    b"/usr/bin/false --check-the-database-thoroughly /var/lib/th\rhing && echo ALL-IS-WELL\r\n"
    b"\x1b[?2004l\r"
)
BUSYBOX = (
    b"/usr/bin/false --check-the-database-thoroughly /var/lib/t\r\r\nhing && echo ALL-IS-WELL\r\n"
)
BUSYBOX_WRAPS_LATER = (
    b"/usr/bin/false --check-the-database-thoroughly /var/lib/thing && echo \r\r\nALL-IS-WELL\r\n"
)
BASH_ON_DUMB = b"\r<abase-thoroughly /var/lib/thing && echo ALL-IS-WELL\r\n"
DASH = COMMAND.encode() + b"\r\n"
SHELLS = {
    "bash": BASH,
    "busybox": BUSYBOX,
    "busybox, broken before the answer": BUSYBOX_WRAPS_LATER,
    "bash on a dumb terminal": BASH_ON_DUMB,
    "dash": DASH,
    "bash that was not up yet": DASH + PROMPT + BASH,
    "busybox that was not up yet": DASH + PROMPT + BUSYBOX_WRAPS_LATER,
    "a program that echoes nothing": b"",
}


class Shell:
    """A machine whose serial line says what a shell was recorded to say, and then ends."""

    def __init__(self, folder: Path, said: Sequence[bytes]) -> None:
        self.console = Console(folder / "serial.log", SystemClock())
        self._said = said
        self.running = True

    def send_line(self, text: str) -> None:
        for piece in self._said:
            self.console.feed(piece)
        self.console.close()
        self.running = False


def run(folder: Path, said: Sequence[bytes], script: str) -> str | None:
    shell = cast(Machine, Shell(folder, said))
    return parse_script(script).run(shell, 30.0, CancelToken(), SystemClock())


@pytest.mark.parametrize("shell", SHELLS)
def test_the_echo_of_a_command_is_no_answer_wherever_the_terminal_breaks_it(
    shell: str, tmp_path: Path
) -> None:
    """A command that fails has not passed because its own text contains what it should say."""
    said = [PROMPT, SHELLS[shell], PROMPT]
    for expected in ("ALL-IS-WELL", "^ALL-IS-WELL", "^hing"):
        assert run(tmp_path, said, f"{COMMAND} => {expected}") is None


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("pieces", [bytes.splitlines, lambda raw, _: [raw]])
def test_an_answer_behind_the_echo_counts(
    shell: str, pieces: Callable[..., list[bytes]], tmp_path: Path
) -> None:
    """However the line was echoed, what the command then says is what was waited for."""
    said = pieces(PROMPT + SHELLS[shell] + b"ALL-IS-WELL\r\n" + PROMPT, True)
    assert run(tmp_path, said, f"{COMMAND} => ALL-IS-W") == "ALL-IS-W"


def test_an_answer_that_ends_as_the_command_begins_counts_at_once(tmp_path: Path) -> None:
    """The next line shows that it was no echo; nobody waits for the time to be over."""
    said = [b"# ls /srv\r\n", b"all.html\r\n", b"b.txt\r\n"]
    assert run(tmp_path, said, "ls /srv => html") == "html"


def test_an_answer_that_ends_as_the_command_begins_and_is_the_last_counts_too(
    tmp_path: Path,
) -> None:
    """Then only time can show it; a machine that has ended shows it as well."""
    assert run(tmp_path, [b"# ls /srv\r\n", b"all.html\r\n# "], "ls /srv => html") == "html"


@pytest.mark.parametrize("shell", SHELLS)
def test_an_answer_that_is_the_whole_line_matches_a_pattern_for_a_whole_line(
    shell: str, tmp_path: Path
) -> None:
    """Although bash sets its terminal up at the begin of the line where the answer comes."""
    said = [SHELLS[shell] + b"ALL-IS-WELL\r\n" + PROMPT]
    assert run(tmp_path, said, f"{COMMAND} => ^ALL-IS-WELL$") == "ALL-IS-WELL"


SHOWN = {
    b"\x1b[?2004l\ractive": "active",
    b"\x1b[1;32mactive\x1b[0m": "active",
    b"\x1b]0;root@guest\x07active": "active",
    b"waiting\r\x1b[Kactive": "active",
    b"active\rin": "intive",
    b"inactive\r\x1b[?2004l": "inactive",
    b"actix\bve": "active",
}


@pytest.mark.parametrize("line", SHOWN)
def test_a_line_is_searched_as_a_terminal_shows_it(line: bytes, tmp_path: Path) -> None:
    """Colours and titles are not in it, and nothing of what was overwritten; what still shows is
    not dropped, so that an answer passes only if it is the one."""
    said = [PROMPT + b"state\r\n", line + b"\r\n", PROMPT]
    assert run(tmp_path, said, "state => ^.*$") == SHOWN[line]
    passes = run(tmp_path, said, "state => ^active$") is not None
    assert passes == (SHOWN[line] == "active")
