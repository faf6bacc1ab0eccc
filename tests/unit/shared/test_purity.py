"""No end is made of a training whose lives ran under different conditions."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from shared.training.ends import Conditions
from shared.training.purity import note_conditions, ran_under


def on(num_threads: int) -> Conditions:
    return Conditions(
        curve="a" * 64, parent=None, device="cpu", num_threads=num_threads, software="hdee"
    )


@given(
    first=st.integers(1, 3), lives=st.lists(st.tuples(st.integers(1, 3), st.booleans()), max_size=6)
)
def test_a_training_is_pure_exactly_if_all_since_its_first_step_ran_alike(first, lives) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, since = Path(name), {first}
        note_conditions(folder, on(first), goes_on=False)
        last = first
        for last, goes_on in lives:
            note_conditions(folder, on(last), goes_on=goes_on)
            since = since | {last} if goes_on else {last}
        assert ran_under(folder, on(last)) == (since == {last})
        assert not ran_under(folder, on(9))


def test_a_checkpoint_of_which_nothing_is_known_is_not_gone_on_with_as_pure(tmp_path: Path) -> None:
    assert not ran_under(tmp_path, on(1))
    note_conditions(tmp_path, on(1), goes_on=True)
    assert not ran_under(tmp_path, on(1))
