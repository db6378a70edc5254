"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest

from appliance.base.errors import UsageError
from appliance.base.units import GIB, KIB, MIB, TIB, format_duration, format_size, parse_size


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (1020 * MIB, "1020 MiB"),
        (GIB, "1 GiB"),
        (62 * TIB, "62 TiB"),
        (5000 * TIB, "5000 TiB"),
    ],
)
def test_sizes_are_short_and_never_in_powers_of_ten(size_bytes: int, text: str) -> None:
    """Three digits, binary units, no exponent."""
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("4096", 4096), ("64K", 64 * KIB), ("1.5GiB", 3 * GIB // 2)]
)
def test_sizes_are_read_as_written(text: str, size_bytes: int) -> None:
    """With or without a unit."""
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "-1", "1Q", "1e9", "K"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """With the forms that would do."""
    with pytest.raises(UsageError, match="not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.85, "850 ms"),
        (12.34, "12.3 s"),
        (245, "4 min 05 s"),
        (12000, "3 h 20 min"),
    ],
)
def test_durations_are_read_at_a_glance(seconds: float, text: str) -> None:
    """From milliseconds to hours."""
    assert format_duration(seconds) == text
