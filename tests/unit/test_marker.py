"""The marker on what we leave at a vCenter."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmware.marker import Marker, Purpose, escape_name, parse_marker

MARKER = Marker(appliance_id="3f0c", run_id="20261120T031500Z-4f0c00112233")


@pytest.mark.parametrize("purpose", Purpose)
@pytest.mark.parametrize("subject", [None, "5022-aa"])
def test_a_marker_is_read_back_as_it_was_written(purpose: Purpose, subject: str | None) -> None:
    """Nothing of it is lost on the way through a description."""
    marker = Marker(appliance_id="a", run_id="r", purpose=purpose, subject=subject)
    assert parse_marker(marker.text) == marker


@given(st.text() | st.none() | st.integers() | st.binary())
def test_no_other_text_is_a_marker(text: object) -> None:
    """Descriptions are written by anybody; reading one never raises."""
    assert parse_marker(text) is None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["holdfast", "appliance", "run", "purpose", "subject", "x"]), inner
            )
        ),
    )
)
def test_no_other_json_is_a_marker_unless_it_is_one(document: object) -> None:
    """What is read from a document writes the same document again: nothing was guessed."""
    marker = parse_marker(json.dumps(document))
    assert marker is None or json.loads(marker.text) == document


@pytest.mark.parametrize(
    "change",
    [
        {"holdfast": 2},
        {"holdfast": True},
        {"appliance": ""},
        {"appliance": "../../etc"},
        {"run": 7},
        {"purpose": "fun"},
        {"more": "x"},
        {"subject": "a b"},
    ],
)
def test_a_marker_with_anything_odd_is_none_of_ours(change: dict[str, object]) -> None:
    """A thing is removed because of its marker, so doubt means: leave it alone."""
    assert parse_marker(json.dumps({**json.loads(MARKER.text), **change})) is None


@pytest.mark.parametrize("text", ["[" * 100_000, '{"holdfast":1' + " " * 3000 + "}"])
def test_a_huge_or_deep_text_is_refused_before_it_is_parsed(text: str) -> None:
    """No description costs more than its length."""
    assert parse_marker(text) is None


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "ä", "x" * 101, "-a"])
def test_an_id_that_could_be_mistaken_is_refused(bad: str) -> None:
    """Ids are plain words."""
    with pytest.raises(ValueError, match="not an id"):
        Marker(appliance_id=bad, run_id="r")


def test_the_name_says_whose_run_it_is_and_is_short() -> None:
    """An administrator sees at once what made the snapshot."""
    assert MARKER.snapshot_name == "holdfast-20261120T031500Z-4f0c00112233-backup"
    assert len(Marker(appliance_id="a", run_id="r" * 100).snapshot_name) <= 80


def test_names_are_escaped_as_the_api_wants_them() -> None:
    """A `%` in a name is `%25` on the wire, or the server reads it as an escape."""
    assert escape_name("100%/a\\b") == "100%25%2fa%5cb"
