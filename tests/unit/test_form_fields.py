"""Flat fields of forms, and the documents that they mean."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.api.errors import BodyError
from appliance.api.ui.form_fields import document_of, fields_of

KEYS = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
TEXT = st.from_regex(r"[A-Za-z0-9*/:-]{1,12}", fullmatch=True)
LEAVES = TEXT | st.lists(TEXT, min_size=1, max_size=4)
DOCUMENTS = st.recursive(
    st.dictionaries(KEYS, LEAVES, min_size=1, max_size=4),
    lambda inner: st.dictionaries(
        KEYS, LEAVES | inner | st.lists(inner, min_size=1, max_size=3), min_size=1, max_size=4
    ),
    max_leaves=6,
)


@given(DOCUMENTS)
def test_fields_made_of_a_document_mean_that_document(document: dict[str, Any]) -> None:
    """So a form that is filled from what is saved, and sent back, changes nothing."""
    assert document_of(fields_of(document).items()) == document


def test_what_is_empty_is_not_said() -> None:
    """A field left empty is not a value, and the form's own fields are not the API's."""
    fields = [("_csrf", "x"), ("job.name", " a "), ("job.policy", ""), ("job.names[]", " \n b\n")]
    assert document_of(fields) == {"job": {"name": "a", "names": ["b"]}}


def test_a_password_is_taken_to_the_letter() -> None:
    """One that ends in a space opens here what it opens everywhere else."""
    fields = [("name", " a "), ("password", " word "), ("new", "x "), ("networks.0.new", "x ")]
    assert document_of(fields) == {
        "name": "a", "password": " word ", "new": "x ", "networks": [{"new": "x"}]
    }  # fmt: skip


def test_values_of_one_list_add_up() -> None:
    """As the boxes that are ticked do."""
    assert document_of([("days[]", "mon"), ("days[]", "tue")]) == {"days": ["mon", "tue"]}


def test_boxes_of_which_none_is_ticked_are_an_empty_list_where_the_form_says_so() -> None:
    """Else the model would take what it does without being told."""
    told = ("_list", "channel.occasions[]")
    assert document_of([told]) == {"channel": {"occasions": []}}
    assert document_of([told, ("channel.occasions[]", "failed"), ("_list", "no list")]) == {
        "channel": {"occasions": ["failed"]}
    }


@pytest.mark.parametrize(
    "fields",
    [
        [("a", "1"), ("a.b", "2")],
        [("a[]", "1"), ("a.b", "2")],
        [("a", "1"), ("a[]", "2")],
        [(".".join("abcdefghij"), "1")],
        [(f"f{number}", "1") for number in range(3000)],
    ],
    ids=["text and object", "list and object", "text and list", "deep", "many"],
)
def test_fields_that_mean_nothing_are_refused(fields: list[tuple[str, str]]) -> None:
    """With the name of the field, and before anything grows."""
    with pytest.raises(BodyError):
        document_of(fields)
