"""The log: one event, one line, whatever the values are."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.base.log import VALUE_LIMIT, EventLog, configure_logging, format_value
from appliance.base.secret import Secret


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    configure_logging(logging.INFO, stream)
    yield stream
    root.setLevel(level)
    root.handlers[:] = handlers


def test_an_event_is_one_line_with_its_fields(output: io.StringIO) -> None:
    """Time in UTC, level, event, then the fields in the order they were given."""
    log = EventLog("appliance.test").bind(run="r1", vm="web 1")
    log.info("disk transferred", disk=0, read_bytes=1 << 30, seconds=1.23456789, path=Path("/a/b"))
    (line,) = output.getvalue().splitlines()
    moment, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", moment)
    assert rest == (
        'info disk transferred run=r1 vm="web 1" disk=0 read_bytes=1073741824 seconds=1.23457'
        " path=/a/b"
    )


def test_a_secret_is_never_written(output: io.StringIO) -> None:
    """Alone, in a container, in an error's text or traceback."""
    log = EventLog("appliance.test")
    secret = Secret.of_text("hunter2")
    log.warning("login", password=secret, all=[secret], named={"x": secret})
    try:
        raise ValueError(secret)
    except ValueError as error:
        log.exception("failed", error=error)
    assert "hunter2" not in output.getvalue()
    assert output.getvalue().count("Secret(***)") >= 4
    assert "ValueError" in output.getvalue()


def test_levels_below_the_configured_one_are_silent(output: io.StringIO) -> None:
    """Configuring again replaces the first configuration instead of doubling the lines."""
    log = EventLog("appliance.test")
    log.debug("unseen")
    assert output.getvalue() == ""
    second = io.StringIO()
    configure_logging(logging.DEBUG, second)
    log.debug("seen", exc_info=1, event="e", name="n", level=2)
    log.error("also seen")
    assert output.getvalue() == ""
    assert [line.split(" ", 2)[1] for line in second.getvalue().splitlines()] == ["debug", "error"]
    assert "exc_info=1 event=e name=n level=2" in second.getvalue()


def test_foreign_records_are_lines_too(output: io.StringIO) -> None:
    """What a library logs cannot forge a line of ours or drive the terminal."""
    logging.getLogger("library").warning("got %s", "x\n2026-11-20T00:00:00Z info fine\x1b[2J")
    (line,) = output.getvalue().splitlines()
    assert line.endswith(r" warning got x\n2026-11-20T00:00:00Z info fine\u001b[2J")


@given(st.text(max_size=50))
def test_any_text_is_one_unambiguous_field(text: str) -> None:
    """Bare without spaces, quotes and equals signs, else JSON that reads back."""
    shown = format_value(text)
    assert shown.isascii()
    assert shown.isprintable()
    if shown.startswith('"'):
        assert json.loads(shown) == text
    else:
        assert shown == text
        assert not set(shown) & set(' "=')


def test_values_have_their_usual_forms() -> None:
    """Digests in hex, times in ISO 8601, nothing without end."""
    assert format_value(b"\x00\xff") == "00ff"
    assert format_value(datetime(2026, 11, 20, 3, 15, tzinfo=UTC)) == "2026-11-20T03:15:00+00:00"
    assert format_value(None) == "None"
    assert format_value("") == '""'
    assert len(format_value("x" * 10**6)) <= VALUE_LIMIT + 10
    assert len(format_value(bytes(10**6))) <= VALUE_LIMIT
