"""When a missing beacon means that our DHT is not the run's."""

from hypothesis import given
from hypothesis import strategies as st

from worker.splits import DARK_TO_REBUILD, DARK_TO_REJOIN, REBUILD_SECONDS, Look, judge

LIT = Look(lit=True, rest=True, open=True)
DARK = Look(lit=False, rest=True, open=True)
SHUT = Look(lit=False, rest=True, open=False)
AWAY = Look(lit=False, rest=False, open=False)

looks = st.lists(st.builds(Look, lit=st.booleans(), rest=st.booleans(), open=st.booleans()))


def test_one_missing_beacon_is_an_accident_several_are_a_split() -> None:
    verdicts = [judge([LIT] + [DARK] * n, rebuilt_at=None, now=0.0) for n in range(7)]
    assert verdicts == ["fine", "fine", "rejoin", "rejoin", "rejoin", "rebuild", "rebuild"]
    assert (DARK_TO_REJOIN, DARK_TO_REBUILD) == (2, 5)


def test_a_coordinator_that_is_away_altogether_splits_nothing() -> None:
    assert judge([AWAY] * 8, rebuilt_at=None, now=0.0) == "fine"
    assert judge([DARK, AWAY, AWAY, DARK], rebuilt_at=None, now=0.0) == "rejoin"
    assert judge([DARK] * 7 + [AWAY], rebuilt_at=None, now=0.0) == "fine"


def test_a_new_daemon_is_no_help_where_no_port_opens_nor_right_after_the_last_one() -> None:
    dark = [DARK] * 8
    assert judge([*dark[1:], SHUT], rebuilt_at=None, now=0.0) == "rejoin"
    assert judge(dark, rebuilt_at=0.0, now=REBUILD_SECONDS - 1) == "rejoin"
    assert judge(dark, rebuilt_at=0.0, now=REBUILD_SECONDS) == "rebuild"


@given(looks, st.none() | st.floats(0, 1e6), st.floats(0, 1e6))
def test_whoever_reads_the_beacon_is_left_alone(
    before: list[Look], rebuilt_at: float | None, now: float
) -> None:
    assert judge([], rebuilt_at=rebuilt_at, now=now) == "fine"
    assert judge([*before, LIT], rebuilt_at=rebuilt_at, now=now) == "fine"
    assert judge([*before, LIT, DARK], rebuilt_at=rebuilt_at, now=now) == "fine"
