"""Cleaning takes out what it was told to, keeps the rest in order, and cuts where texts end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from coordinator.text.cleaning import Repeats, cleaned, packed
from coordinator.text_sections import PathSource

LINES = st.lists(st.text(alphabet="ab .\n", max_size=40), max_size=12)


def source(**fields: object) -> PathSource:
    return PathSource.model_validate({"path": "*", "document": "file", **fields})


def test_the_first_of_equal_long_lines_stays_over_all_documents():
    repeats = Repeats(5)
    found = list(cleaned(["a long line\nshort\nx", "short\n  a long line\ny"], source(), repeats))
    assert found == ["a long line\nshort\nx", "short\ny"]
    assert repeats.chars_left_out == len("  a long line")


def test_without_a_limit_every_line_stays():
    assert list(cleaned(["same", "same"], source(), Repeats(None))) == ["same", "same"]


def test_what_an_expression_matches_is_removed_and_blank_documents_are_left_out():
    removing = source(remove=[r"/\w+", "^#.*$"])
    documents = ["the/at jury/nn", "# a comment", "  kept"]
    assert list(cleaned(documents, removing, Repeats(None))) == ["the jury", "  kept"]


def test_packing_cuts_at_blank_lines_then_lines_then_sentences():
    text = "one one\n\ntwo two\n\nthree. four! five six"
    assert list(packed([text], limit=18)) == ["one one\n\ntwo two", "three. four!", "five six"]
    assert list(packed(["a b\nc d\ne f"], limit=7)) == ["a b\nc d", "e f"]
    assert list(packed(["a", "b", "c" * 9], limit=4)) == ["a\n\nb", "ccccccccc"]


def test_packing_keeps_indentation():
    assert list(packed(["def f():\n\n    return 1"], limit=12)) == ["def f():", "    return 1"]


@given(LINES, st.integers(min_value=1, max_value=30))
def test_packing_loses_and_reorders_nothing(documents, limit):
    found = list(packed(documents, limit=limit))
    assert "".join("".join(found).split()) == "".join("".join(documents).split())
    for piece in found:
        assert len(piece) <= limit or "\n" not in piece


@pytest.mark.parametrize("fields", [{"remove": ["("]}, {"document": "match:("}, {"pack": 0}])
def test_what_cannot_be_meant_is_refused(fields):
    with pytest.raises(ValidationError):
        source(**fields)
