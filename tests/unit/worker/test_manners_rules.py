"""When training may run: the owner first, hours by the wall clock, and nothing that flaps."""

from datetime import UTC, datetime
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.manners.hours import (
    DAY_MINUTES,
    EVERY_DAY,
    BadHours,
    Hours,
    are_open,
    next_change,
    parse_hours,
)
from worker.manners.rules import (
    SETTLE_SECONDS,
    Facts,
    Past,
    Pause,
    Rules,
    available_seconds,
    in_words,
    judge,
    remembered,
)

BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
"""Its clock jumps by half an hour only."""


def clock_of(zone):
    return lambda at: datetime.fromtimestamp(at, tz=UTC).astimezone(zone)


def unix(*parts: int, zone=BERLIN, fold: int = 0) -> float:
    return datetime(*parts, tzinfo=zone, fold=fold).timestamp()


minutes = st.integers(0, DAY_MINUTES - 1)
spans = st.builds(
    Hours,
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=minutes,
    end=st.integers(1, DAY_MINUTES),
).filter(lambda hours: hours.start != hours.end)
zones = st.sampled_from([BERLIN, LORD_HOWE, UTC, ZoneInfo("America/New_York")])
times = st.floats(1_760_000_000, 1_800_000_000).map(lambda at: float(int(at)))
near_jumps = st.sampled_from([unix(2026, 3, 29), unix(2026, 10, 25), unix(2026, 4, 5)]).flatmap(
    lambda day: st.integers(-90_000, 90_000).map(lambda shift: day + shift)
)
shares = st.none() | st.floats(0, 1)
facts_seen = st.builds(
    Facts,
    idle_seconds=st.none() | st.floats(0, 10_000),
    on_battery=st.none() | st.booleans(),
    other_cpu=shares,
)
rules_given = st.builds(
    Rules,
    idle_seconds=st.none() | st.floats(10, 5_000),
    hours=st.lists(spans, max_size=2).map(tuple),
    on_battery=st.booleans(),
    max_other_cpu=shares,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22:00-07:00", Hours(start=22 * 60, end=7 * 60)),
        ("Mon-Fri 18:00-08:00", Hours(days=frozenset(range(5)), start=18 * 60, end=8 * 60)),
        ("sat 9:30-24:00", Hours(days=frozenset({5}), start=570, end=DAY_MINUTES)),
        ("Fri-Mon 00:00-24:00", Hours(days=frozenset({4, 5, 6, 0}), start=0, end=DAY_MINUTES)),
    ],
)
def test_hours_are_read_with_their_days(text, expected):
    assert parse_hours(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "22-7", "22:00", "25:00-07:00", "22:60-07:00", "Mit 1:00-2:00", "8:00-8:00", "0:00-24:01"],
)
def test_hours_that_are_none_are_refused_with_an_example(text):
    with pytest.raises(BadHours, match=r"such as 22:00-07:00 or Mon-Fri 18:00-08:00"):
        parse_hours(text)


@given(
    days=st.just(EVERY_DAY)
    | st.tuples(st.integers(0, 6), st.integers(0, 5)).map(
        lambda span: frozenset((span[0] + step) % 7 for step in range(span[1] + 1))
    ),
    start=minutes,
    end=st.integers(1, DAY_MINUTES),
)
def test_hours_are_written_as_they_are_read(days, start, end):
    if start != end:
        hours = Hours(days=days, start=start, end=end)
        assert parse_hours(str(hours)) == hours


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin():
    weekend = parse_hours("Fri-Sat 22:00-07:00")
    for shown, expected in {
        (2026, 11, 20, 21, 59): False,
        (2026, 11, 20, 22, 0): True,
        (2026, 11, 22, 6, 59): True,
        (2026, 11, 22, 7, 0): False,
        (2026, 11, 22, 23, 0): False,
        (2026, 11, 20, 3, 0): False,
    }.items():
        assert weekend.contain(datetime(*shown, tzinfo=BERLIN)) is expected, shown


def test_hours_that_the_clock_jumps_over_begin_with_the_jump():
    hours = (parse_hours("Sun 02:30-04:00"),)
    opens_at = next_change(hours, now=unix(2026, 3, 29, 1, 0), local=clock_of(BERLIN))
    assert opens_at == unix(2026, 3, 29, 3, 0)
    assert next_change(hours, now=opens_at, local=clock_of(BERLIN)) == unix(2026, 3, 29, 4, 0)


def test_hours_that_the_clock_shows_twice_come_twice():
    hours = (parse_hours("02:00-02:30"),)
    local = clock_of(BERLIN)
    first = next_change(hours, now=unix(2026, 10, 25, 1, 0), local=local)
    closed = next_change(hours, now=first, local=local)
    again = next_change(hours, now=closed, local=local)
    assert (closed - first, again - first) == (1800, 3600)


@given(hours=st.lists(spans, min_size=1, max_size=3), now=times | near_jumps, zone=zones)
@example(hours=[Hours(start=130, end=140)], now=unix(2026, 10, 25, 1, 30), zone=BERLIN)
@example(
    hours=[Hours(days=frozenset({5}), start=2, end=1)],
    now=unix(2026, 3, 28, 23, 30),
    zone=BERLIN,
)
def test_nothing_opens_or_closes_before_the_next_change(hours, now, zone):
    local = clock_of(zone)
    is_open = are_open(hours, local(now))
    change = next_change(hours, now=now, local=local)
    if change is None:
        change, changes = now + 14 * 86_400, False
    else:
        changes = True
        assert are_open(hours, local(change)) is not is_open
        assert are_open(hours, local(change - 1)) is is_open
    assert change > now
    step = max(60.0, (change - now) / 40)
    at = now
    while at < change:
        assert are_open(hours, local(at)) is is_open
        at += step
    assert changes or are_open(hours, local(change)) is is_open


@given(rules=rules_given, facts=facts_seen, now=times, until=st.none() | st.floats(1, 1e6))
def test_a_pause_by_the_owner_always_wins(rules, facts, now, until):
    pause = Pause(until=None if until is None else now + until)
    verdict = judge(rules, facts, pause, now=now)
    assert not verdict.may_train
    assert verdict.reason == "paused by its owner"
    if until is None:
        assert verdict.until is None


@given(
    rules=rules_given,
    facts=facts_seen,
    pause=st.none() | st.floats(1, 40_000),
    now=times | near_jumps,
    ago=st.floats(0, 60),
    part=st.floats(0, 0.999),
)
def test_what_is_said_to_change_by_itself_changes_then_and_not_before(
    rules, facts, pause, now, ago, part
):
    local = clock_of(BERLIN)
    ordered = None if pause is None else Pause(until=now + pause)
    past = remembered(Past(crowded_at=now - ago, unplugged_at=now - ago), rules, facts, now=now)

    def at(then: float):
        """The verdict if nobody did anything since."""
        idle = None if facts.idle_seconds is None else facts.idle_seconds + then - now
        seen = Facts(idle_seconds=idle, on_battery=facts.on_battery, other_cpu=facts.other_cpu)
        known = remembered(past, rules, seen, now=then)
        return judge(rules, seen, ordered, now=then, past=known, local=local)

    verdict = at(now)
    assert verdict.reason == "" if verdict.may_train else verdict.reason
    if verdict.until is not None:
        assert verdict.until > now
        assert at(verdict.until + 1e-3).may_train is not verdict.may_train
        assert at(now + part * (verdict.until - now)).may_train is verdict.may_train


def test_reasons_are_sentences_for_people():
    now = unix(2026, 11, 22, 12, 0)
    local = clock_of(BERLIN)

    def why(rules: Rules, facts: Facts) -> str:
        past = remembered(Past(), rules, facts, now=now)
        return judge(rules, facts, None, now=now, past=past, local=local).reason

    assert why(Rules(idle_seconds=300), Facts(idle_seconds=12.3)) == (
        "you used this computer 12 s ago; training goes on after 5 minutes without you"
    )
    assert why(Rules(idle_seconds=300), Facts()) == (
        "nothing here tells whether you use this computer; give --activity-file, or leave out "
        "--only-when-idle"
    )
    assert why(Rules(hours=(parse_hours("22:00-07:00"),)), Facts()) == (
        "outside of the hours that you allow (22:00-07:00); training goes on at 22:00"
    )
    assert why(Rules(hours=(parse_hours("Tue 22:00-23:00"),)), Facts()).endswith("at Tue 22:00")
    assert why(Rules(), Facts(on_battery=True)) == (
        "this computer runs on battery; training goes on when it is plugged in"
    )
    assert why(Rules(max_other_cpu=0.5), Facts(other_cpu=0.634)) == (
        "other programs use 63% of the CPU, you allow training beside 50%; it goes on when they "
        "are done"
    )
    assert why(Rules(), Facts(on_battery=None, idle_seconds=0)) == ""


def test_a_machine_without_a_battery_is_not_on_battery():
    assert judge(Rules(), Facts(on_battery=None), None, now=0.0).may_train
    assert judge(Rules(on_battery=True), Facts(on_battery=True), None, now=0.0).may_train


@given(used=st.lists(st.floats(0, 1), min_size=2, max_size=300), limit=st.floats(0.1, 0.9))
def test_others_that_come_and_go_do_not_make_training_flap(used, limit):
    rules, past = Rules(max_other_cpu=limit), Past()
    changes, before = [], None
    for now, share in enumerate(used):
        facts = Facts(other_cpu=share)
        past = remembered(past, rules, facts, now=float(now))
        verdict = judge(rules, facts, None, now=float(now), past=past)
        if share > limit:
            assert not verdict.may_train
        if before is not None and verdict.may_train is not before:
            changes.append((now, verdict.may_train))
        before = verdict.may_train
    resumed = [at for at, may_train in changes if may_train]
    assert all(later - at >= SETTLE_SECONDS for at, later in pairwise(resumed))


def test_a_loose_plug_does_not_start_training_at_every_touch():
    rules = Rules()
    past = remembered(Past(), rules, Facts(on_battery=True), now=100.0)
    assert past == Past(unplugged_at=100.0)
    plugged = Facts(on_battery=False)
    verdict = judge(rules, plugged, None, now=110.0, past=past)
    assert (verdict.may_train, verdict.until) == (False, 100.0 + SETTLE_SECONDS)
    assert verdict.reason.endswith("training goes on in 20 s")
    assert judge(rules, plugged, None, now=130.0, past=past).may_train


@pytest.mark.parametrize(
    ("seconds", "words"), [(0, "0 s"), (119, "119 s"), (300, "5 minutes"), (10_800, "3 hours")]
)
def test_spans_are_said_in_words(seconds, words):
    assert in_words(seconds) == words


@pytest.mark.parametrize(
    ("hour", "stay", "expected"),
    [
        (23, None, None),
        (2, None, None),
        (3, None, 4 * 3600.0),
        (6, None, 3600.0),
        (6, 600.0, 600.0),
        (23, 600.0, 600.0),
        (12, None, None),
        (12, 600.0, 600.0),
    ],
)
def test_in_the_second_half_of_the_hours_only_work_that_ends_in_them_is_begun(hour, stay, expected):
    rules = Rules(hours=(parse_hours("22:00-07:00"),))
    at = unix(2024, 1, 15 if hour > 7 else 16, hour)
    found = available_seconds(rules, stay_seconds=stay, now=at, local=clock_of(BERLIN))
    assert found == expected


@given(
    hours=st.lists(
        st.sampled_from(["22:00-07:00", "Mon-Fri 18:00-08:00", "Sat 00:00-24:00", "12:00-12:30"]),
        max_size=3,
    ),
    at=st.integers(1_700_000_000, 1_730_000_000),
)
def test_what_is_announced_ends_when_the_hours_do(hours, at):
    allowed = tuple(map(parse_hours, hours))
    local = clock_of(BERLIN)
    left = available_seconds(Rules(hours=allowed), stay_seconds=None, now=at, local=local)
    if left is not None:
        assert are_open(allowed, local(at + left - 1))
        assert not are_open(allowed, local(at + left))
