"""Whoever did a step of an accepted expert is credited with it, once."""

import hypothesis.strategies as st
from hypothesis import given

from coordinator.credit import Try, steps_by_worker

WORKERS = ("anna", "bert", "cleo")


@st.composite
def chains(draw):
    """Attempts at one spec, each from the start or from what an earlier one left."""
    num_steps = draw(st.integers(1, 50))
    tries = {}
    for number in range(1, draw(st.integers(1, 8)) + 1):
        resumed, step = None, 0
        if number > 1 and draw(st.booleans()):
            resumed = ("a", draw(st.integers(1, number - 1)))
            step = draw(st.integers(tries[resumed].resumed_step, num_steps))
        tries["a", number] = Try(draw(st.sampled_from(WORKERS)), resumed, step)
    return tries, num_steps


@given(chains())
def test_the_counts_add_up_to_the_steps_of_the_spec(chain):
    tries, num_steps = chain
    done = steps_by_worker(tries, last=("a", len(tries)), num_steps=num_steps)
    assert sum(done.values()) == num_steps
    assert all(steps > 0 for steps in done.values())


@given(
    st.lists(
        st.tuples(st.sampled_from(WORKERS), st.integers(0, 4), st.integers(0, 60)), min_size=1
    ),
    st.integers(1, 50),
)
def test_they_add_up_even_where_the_chain_is_broken(links, num_steps):
    tries = {
        ("a", number): Try(worker, ("a", other % len(links)), step)
        for number, (worker, other, step) in enumerate(links)
    }
    done = steps_by_worker(tries, last=("a", len(links) - 1), num_steps=num_steps)
    assert sum(done.values()) == num_steps


def test_each_is_credited_from_where_it_went_on_to_where_the_next_one_did():
    tries = {
        ("a", 1): Try("anna", None, 0),
        ("a", 2): Try("bert", ("a", 1), 8),
        ("b", 1): Try("cleo", ("a", 2), 15),
        ("a", 3): Try("bert", ("a", 2), 12),
    }
    overtaken = steps_by_worker(tries, last=("b", 1), num_steps=20)
    assert overtaken == {"anna": 8, "bert": 7, "cleo": 5}
    assert steps_by_worker(tries, last=("a", 3), num_steps=20) == {"anna": 8, "bert": 12}


def test_whoever_starts_afresh_is_credited_with_all():
    tries = {("a", 1): Try("anna", None, 0), ("a", 2): Try("bert", None, 0)}
    assert steps_by_worker(tries, last=("a", 2), num_steps=20) == {"bert": 20}


def test_the_steps_of_a_shorter_training_are_credited_with_that_one_alone():
    tries = {
        ("a", 1): Try("anna", ("short", 1), 8),
        ("a", 2): Try("bert", ("a", 1), 15),
    }
    assert steps_by_worker(tries, last=("a", 1), num_steps=20) == {"anna": 12}
    assert steps_by_worker(tries, last=("a", 2), num_steps=20) == {"anna": 7, "bert": 5}


def test_an_own_checkpoint_of_which_nobody_else_knows_is_own_work():
    assert steps_by_worker({("a", 1): Try("anna", None, 8)}, last=("a", 1), num_steps=20) == {
        "anna": 20
    }
