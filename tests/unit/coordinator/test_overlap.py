"""Overlap counts shared runs of 13 words exactly, in every pair of shards, and says so."""

import random
import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.text.overlap import RUN_WORDS, OverlapReport, lines_of, measure, runs_of

SENTENCE = "one two three four five six seven eight nine ten eleven twelve thirteen"


def shares(held: list[str], train: list[str], **limits: int) -> tuple[float, float]:
    report = measure({("a", "test"): lambda: held}, {"a": lambda: train}, **limits)
    (one,) = report.overlaps
    return one.share_of_runs, one.share_of_documents


def test_thirteen_words_are_one_run_whatever_their_case_and_punctuation():
    assert len(runs_of(SENTENCE)) == 1
    assert len(runs_of(SENTENCE.removesuffix(" thirteen"))) == 0
    shouted = "-- " + SENTENCE.upper().replace(" ", ", ") + "!"
    assert np.array_equal(runs_of(shouted), runs_of(SENTENCE))
    assert runs_of(SENTENCE.replace("one two", "two one")) != runs_of(SENTENCE)


def test_shares_count_runs_and_documents():
    held = [SENTENCE, SENTENCE + " fourteen", "nothing of it", "a " * 20]
    assert shares(held, ["before " + SENTENCE]) == (2 / 11, 2 / 4)
    assert shares(held, []) == (0.0, 0.0)
    assert shares([], [SENTENCE]) == (0.0, 0.0)


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 6))
def test_shares_are_those_of_a_direct_count(rng_seed, num_held, num_train):
    draw = random.Random(rng_seed)
    held, train = (
        [" ".join(draw.choices("ab", k=draw.randrange(30))) for _ in range(count)]
        for count in (num_held, num_train)
    )

    def direct(text: str) -> list[str]:
        words = re.findall(r"\w+", text)
        return [" ".join(words[at : at + RUN_WORDS]) for at in range(len(words) - RUN_WORDS + 1)]

    there = {run for text in train for run in direct(text)}
    hits = [[run in there for run in direct(text)] for text in held]
    total = sum(map(len, hits))
    runs = sum(map(sum, hits)) / total if total else 0.0
    assert shares(held, train) == (runs, sum(map(any, hits)) / num_held)


def test_every_held_out_shard_is_looked_up_in_every_train_shard():
    held = {("a", "test"): lambda: [SENTENCE], ("b", "dev"): lambda: ["x " * 14]}
    train = {"a": lambda: ["y " * 20], "b": lambda: [SENTENCE], "general": lambda: ["x " * 13]}
    found = {
        (one.domain, one.split, one.train): one.share_of_runs
        for one in measure(held, train).overlaps
    }
    assert found == {
        ("a", "test", "a"): 0.0, ("a", "test", "b"): 1.0, ("a", "test", "general"): 0.0,
        ("b", "dev", "a"): 0.0, ("b", "dev", "b"): 0.0, ("b", "dev", "general"): 1.0,
    }  # fmt: skip


def test_a_large_shard_is_represented_by_documents_from_its_start_and_the_report_says_so():
    held = [SENTENCE, "a " * 40, SENTENCE]
    report = measure({("a", "test"): lambda: held}, {"a": lambda: [SENTENCE]}, max_grams=2)
    (measured,) = report.measured
    assert (measured.documents, measured.of_documents, measured.runs) == (2, 3, 29)
    assert report.overlaps[0].share_of_runs == 1 / 29


def test_the_table_names_the_worst_other_shard_and_warns_above_the_level():
    held = {("a", "test"): lambda: [SENTENCE], ("a", "dev"): lambda: [SENTENCE]}
    train = {"a": lambda: ["y"], "b": lambda: [SENTENCE], "general": lambda: ["z"]}
    report = measure(held, train)
    lines = lines_of(report)
    (row,) = [line for line in lines if line.startswith("a ")]
    assert row.split() == ["a", "0.00%", "(0.0%)", "100.00%", "(100.0%)", "b"]
    warnings = [line for line in lines if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "100.0% of the runs of a" in warnings[0]
    assert "in b train" in warnings[0]
    assert OverlapReport.model_validate_json(report.model_dump_json()) == report
