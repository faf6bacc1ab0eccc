"""What is shown of a posterior: where from, whose, and in which words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.scoring.ensembles import ShardScores
from coordinator.scoring.traces import (
    TRACE_LABELS,
    chosen_stretch,
    posterior_trace,
    spelled,
    traced_domains,
)
from shared.ensemble import posterior
from shared.shards import BOS_ID, Shard, scoring_windows


def shard(*lengths: int) -> Shard:
    tokens = np.concatenate([[BOS_ID, *range(3, 3 + length)] for length in lengths])
    return Shard(
        tokens=tokens.astype(np.uint16),
        document_offsets=np.cumsum([0, *(length + 1 for length in lengths)]),
        document_bytes=np.asarray(lengths),
    )


def test_the_first_document_that_is_long_enough_is_shown_from_its_beginning() -> None:
    text = shard(5, 400, 600)
    begin, ids = chosen_stretch(text, scoring_windows(text, 256))
    assert begin == 5
    assert ids == list(range(3, 3 + TRACE_LABELS))


def test_else_the_longest_beginning_of_a_document() -> None:
    text = shard(5, 20, 9)
    assert chosen_stretch(text, scoring_windows(text, 256)) == (5, list(range(3, 23)))
    begin, ids = chosen_stretch(text, scoring_windows(text, 8))
    assert (begin, len(ids)) == (5, 8), "a later window of a document is no beginning"


def test_weights_are_those_of_the_posterior_from_the_beginning_of_the_window() -> None:
    rng = np.random.default_rng(0)
    rows = -rng.gamma(2.0, 1.0, (2, 30))
    scores = ShardScores({"a": rows[0], "b": rows[1]}, np.array([0, 10]), np.array([0, 1]), 9)
    found = posterior_trace(
        "S", "law", members=("a", "b"), scores=scores, tokens=["x"] * 12, begin=10
    )
    assert np.allclose(found.weights, posterior(rows[:, 10:22], [0]), atol=1e-6)
    assert (found.scheme, found.domain, found.members) == ("S", "law", ("a", "b"))
    assert len(found.tokens) == 12


def test_one_domain_of_each_class_is_shown_else_the_first() -> None:
    trained = ("a", "b", "c", "d")
    classes = {"a": "easy", "b": "easy", "c": "difficult", "d": "moderate"}
    assert traced_domains(trained, classes) == ["a", "d", "c"]
    assert traced_domains(trained, {}) == ["a", "b", "c"]
    assert traced_domains(("a", "b"), {"a": "easy", "b": "easy"}) == ["a", "b"]


@given(st.text(max_size=40))
def test_what_ids_spell_is_the_text_also_where_a_character_needs_several(text: str) -> None:
    ids = list(text.encode("utf-8", errors="ignore"))
    whole = bytes(ids).decode("utf-8")
    found = spelled(lambda some: bytes(some).decode("utf-8", errors="replace"), ids)
    assert len(found) == len(ids)
    assert "".join(found) == whole


def test_a_character_of_several_ids_stands_at_the_last_one() -> None:
    ids = list("aé!".encode())
    found = spelled(lambda some: bytes(some).decode("utf-8", errors="replace"), ids)
    assert found == ("a", "", "é", "!")


@pytest.mark.parametrize("ids", [[], [97]])
def test_short_texts_are_spelled_too(ids) -> None:
    assert len(spelled(lambda some: bytes(some).decode(), ids)) == len(ids)
