"""Local checkpoints: little is lost, and little time goes into writing."""

from hypothesis import given
from hypothesis import strategies as st

from worker.trainer.cadence import CAP_SECONDS, MIN_SECONDS, is_due, local_seconds

SECONDS = st.floats(min_value=0.0, max_value=1e4)
CAPS = st.floats(min_value=1e-9, max_value=3600.0)


@given(write=SECONDS, cap=CAPS)
def test_no_more_training_than_the_cap_is_lost(write: float, cap: float) -> None:
    assert 0 < local_seconds(write, cap) <= cap


@given(write=st.floats(min_value=1e-6, max_value=CAP_SECONDS / 50))
def test_writing_takes_less_than_two_hundredths_where_the_cap_allows_it(write: float) -> None:
    assert write / (write + local_seconds(write)) < 0.02


@given(write=SECONDS, more=SECONDS, cap=CAPS)
def test_who_writes_longer_writes_no_more_often(write: float, more: float, cap: float) -> None:
    assert local_seconds(write, cap) <= local_seconds(write + more, cap)


def test_fast_writes_are_not_repeated_at_once_unless_the_owner_wants_it() -> None:
    assert local_seconds(0.001) == MIN_SECONDS
    assert local_seconds(0.001, 0.5) == 0.5


@given(
    durable=st.floats(0.5, 3600.0),
    write=st.floats(0.0, 30.0),
    jitter=st.lists(st.floats(0.0, 0.2), min_size=1, max_size=50),
)
def test_the_durable_cadence_is_kept_as_closely_as_the_local_one_allows(
    durable: float, write: float, jitter: list[float]
) -> None:
    local = local_seconds(write, min(CAP_SECONDS, durable))
    now, announced, gaps = 0.0, 0.0, []
    for late in jitter * 20:
        now += local + late
        if is_due(now - announced, durable):
            gaps.append(now - announced)
            announced = now
    assert all(0.9 * durable <= gap < durable + local + 0.2 + 1e-6 for gap in gaps)
    assert gaps or now < durable
