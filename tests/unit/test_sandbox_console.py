"""The serial console: lines, bounds and waiting."""

from __future__ import annotations

import random
import re
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.clock import SystemClock
from appliance.sandbox import console as console_module
from appliance.sandbox.console import Console, LineCursor


def feed_in_pieces(console: Console, data: bytes, seed: int) -> None:
    pieces = random.Random(seed)
    while data:
        length = pieces.randint(1, 7)
        console.feed(data[:length])
        data = data[length:]


@given(
    lines=st.lists(st.text(st.characters(codec="ascii", exclude_characters="\r\n"), max_size=20)),
    seed=st.integers(0, 1000),
)
def test_lines_do_not_depend_on_how_the_stream_is_cut(
    lines: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The same bytes give the same lines and the same log, with \\n and with \\r\\n."""
    line_end = "\r\n" if seed % 2 else "\n"
    data = "".join(line + line_end for line in lines).encode()
    path = tmp_path_factory.mktemp("console") / "serial.log"
    console = Console(path, SystemClock())
    feed_in_pieces(console, data, seed)
    console.close()
    assert console.lines == lines
    assert path.read_bytes() == data


def test_log_lines_and_window_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest that never stops talking costs a bounded file and bounded memory."""
    monkeypatch.setattr(console_module, "LOG_BYTES_MAX", 1000)
    console = Console(tmp_path / "serial.log", SystemClock())
    for _ in range(30):
        console.feed(b"x" * 100_000)
    console.feed(b"\n")
    for number in range(console_module.LINES_MAX + 50):
        console.feed(b"line %d\n" % number)
    console.close()
    log = (tmp_path / "serial.log").read_bytes()
    assert log.startswith(b"x" * 1000) and len(log) < 1100 and b"limit reached" in log
    assert len(console.lines) == console_module.LINES_MAX
    assert console.lines[-1] == f"line {console_module.LINES_MAX + 49}"


def test_a_full_disk_ends_the_log_and_not_the_machine() -> None:
    """Probes go on matching when the log cannot be written any more."""
    console = Console(Path("/dev/full"), SystemClock())
    console.feed(b"one\n")
    console.feed(b"two\n")
    console.close()
    assert console.lines == ["one", "two"]


def test_a_long_line_is_cut_and_the_next_is_whole(tmp_path: Path) -> None:
    """Cutting one line does not eat into its neighbour."""
    console = Console(tmp_path / "serial.log", SystemClock())
    console.feed(b"a" * 10_000 + b"\nready\n")
    console.close()
    assert console.lines == ["a" * console_module.LINE_BYTES_MAX, "ready"]


def test_a_cursor_sees_each_complete_line_once(tmp_path: Path) -> None:
    """Successive answers are told apart, and half a number is not taken for one."""
    console = Console(tmp_path / "serial.log", SystemClock())
    cursor = LineCursor()
    ack = re.compile(r"^ACK (\d+)$")
    console.feed(b"ACK 1\nnoise\nACK 2\nACK 3")
    seen = [match[1] for _ in range(3) if (match := console.search(ack, cursor))]
    assert seen == ["1", "2"]
    console.feed(b"4\n")
    match = console.search(ack, cursor)
    assert match and match[1] == "34"
    console.close()


def test_a_prompt_without_a_line_end_can_be_matched(tmp_path: Path) -> None:
    """`serial:login:` works although no line end follows."""
    console = Console(tmp_path / "serial.log", SystemClock())
    console.feed(b"Debian 12\nlogin: ")
    assert console.search(re.compile("login:"), LineCursor()) is None
    assert console.search(re.compile("login:"), LineCursor(), unfinished=True)
    console.close()


def test_lines_that_left_the_window_do_not_shift_the_cursor(tmp_path: Path) -> None:
    """After a flood the cursor goes on with the oldest line still there."""
    console = Console(tmp_path / "serial.log", SystemClock())
    cursor = LineCursor()
    every = re.compile(r"^line (\d+)$")
    total = console_module.LINES_MAX + 500
    for number in range(total):
        console.feed(b"line %d\n" % number)
    seen = []
    while match := console.search(every, cursor):
        seen.append(int(match[1]))
    console.close()
    assert seen == list(range(500, total))


def test_a_waiter_is_woken_by_its_line_and_by_the_end(tmp_path: Path) -> None:
    """Waiting ends as soon as it can, never later than the machine."""
    console = Console(tmp_path / "serial.log", SystemClock())
    threading.Timer(0.05, console.feed, [b"HOLDFAST-READY\n"]).start()
    assert console.wait_for(re.compile("READY"), 60)
    threading.Timer(0.05, console.close).start()
    assert console.wait_for(re.compile("never"), 60) is None
