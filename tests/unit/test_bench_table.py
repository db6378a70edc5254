"""The pure half of the bench: medians, ratios, goals, and how they are shown."""

from __future__ import annotations

import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.perf.table import Goal, Missing, Ratio, Row, Samples, document, figure, markdown


def row(
    ours: tuple[float, ...] | str,
    theirs: tuple[float, ...] | str | None = None,
    *,
    divide: Ratio = Ratio.PEER_BY_OURS,
    goal: Goal | None = None,
) -> Row:
    def value(given: tuple[float, ...] | str) -> Samples | Missing:
        return Missing(reason=given) if isinstance(given, str) else Samples(values=given)

    return Row(
        section="section",
        measure="measure",
        unit="s",
        ours=value(ours),
        peer="peer",
        theirs=None if theirs is None else value(theirs),
        divide=divide,
        goal=goal,
    )


def test_one_outlier_does_not_move_the_figure() -> None:
    """The median counts, not the mean."""
    assert Samples(values=(1.0, 1.1, 90.0)).median == 1.1


def test_samples_without_a_value_are_refused() -> None:
    """A figure that was not taken is Missing with a reason, never an empty series."""
    with pytest.raises(ValueError, match="without a value"):
        Samples(values=())


def test_a_time_five_times_as_short_is_a_ratio_of_five() -> None:
    """For times the ratio says how many times as fast we are."""
    assert row((2.0,), (10.0,)).ratio == 5


def test_a_rate_twice_as_high_is_a_ratio_of_two() -> None:
    """For rates it says the same, with the division the other way round."""
    assert row((20.0,), (10.0,), divide=Ratio.OURS_BY_PEER).ratio == 2


def test_an_absolute_goal_compares_the_figure_itself() -> None:
    """A goal without a peer is about the median."""
    measured = row((1.6, 1.4, 1.5), divide=Ratio.OURS, goal=Goal(limit=1.5))
    assert measured.reached is True


@pytest.mark.parametrize(
    ("at_most", "ratio", "reached"),
    [
        (False, 1.0, True),
        (False, 0.99, False),
        (True, 1.0, True),
        (True, 1.01, False),
    ],
)
def test_a_goal_includes_its_limit(at_most: bool, ratio: float, reached: bool) -> None:
    """Exactly at the limit is reached, in both directions."""
    assert Goal(limit=1.0, at_most=at_most).reached(ratio) is reached


def test_a_missing_side_leaves_ratio_and_verdict_open() -> None:
    """Nothing is claimed, neither yes nor no, when a side was not measured."""
    goal = Goal(limit=1)
    for incomplete in (row("gone", (1.0,), goal=goal), row((1.0,), "gone", goal=goal)):
        assert incomplete.ratio is None
        assert incomplete.reached is None


def test_a_time_of_zero_is_not_an_infinite_ratio() -> None:
    """A divisor of 0 gives no ratio."""
    assert row((0.0,), (1.0,)).ratio is None


def test_the_table_says_why_a_figure_is_missing() -> None:
    """Each reason stands once below the table, with section and program."""
    text = markdown([row("not there yet", (3.0,)), row("not there yet", (4.0,))])
    assert text.count("- section, holdfast: not there yet") == 1
    assert "not measured" in text


def test_the_verdict_is_a_word() -> None:
    """yes, no or a dash, in the last column."""
    goal = Goal(limit=2)
    rows = [row((1.0,), (2.0,), goal=goal), row((1.0,), (1.0,), goal=goal), row((1.0,), (1.0,))]
    verdicts = [line.split("|")[-2].strip() for line in markdown(rows).splitlines()[2:]]
    assert verdicts == ["yes", "no", "–"]


@given(st.lists(st.floats(0.001, 1e9), min_size=1, max_size=9))
def test_every_sample_is_in_the_json_document(values: list[float]) -> None:
    """JSON keeps the series, so that a figure can be judged by its spread."""
    shown = json.loads(json.dumps(document([row(tuple(values), (1.0,))])))[0]
    assert shown["holdfast"] == {"median": statistics.median(values), "samples": values}
    assert shown["peer_value"]["samples"] == [1.0]


@given(st.text(), st.text())
def test_no_text_breaks_the_table(measure: str, peer: str) -> None:
    """Every row has nine cells, whatever a program or an error message contains."""
    shown = Row(section="s", measure=measure, unit="s", ours=Samples(values=(1.0,)), peer=peer)
    lines = markdown([shown]).removesuffix("\n").split("\n")
    assert len(lines) == 3
    assert len(lines[2].replace("\\|", "").split("|")) == 9 + 2


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (12.34, "12.3"), (999.4, "999"), (12345.6, "12 346")]
)
def test_figures_have_three_digits_or_more(value: float, text: str) -> None:
    """Thousands are set apart, small numbers keep three significant digits."""
    assert figure(value) == text
