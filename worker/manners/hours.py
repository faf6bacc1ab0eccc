"""Hours in which a computer may train: by its own clock, over midnight and over jumps. Pure."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from typing_extensions import override

LocalTime = Callable[[float], datetime]
"""What the clock on the wall shows at a time in Unix seconds, with its offset."""

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
EVERY_DAY = frozenset(range(7))
DAY_MINUTES = 24 * 60
_DAY_SECONDS = 86_400
_FORM = re.compile(r"(?:([A-Za-z]{3})(?:-([A-Za-z]{3}))?\s+)?(\d\d?):(\d\d)-(\d\d?):(\d\d)")
_HORIZON_DAYS = 15


class BadHours(ValueError):
    """Text that names no hours; the message says what was expected."""


@dataclass(frozen=True, kw_only=True)
class Hours:
    """From minute `start` to before minute `end` of the days on which they start; Monday is 0.

    They go over midnight where `end` is not after `start`; both equal is a whole day from there.
    """

    days: frozenset[int] = EVERY_DAY
    start: int
    end: int

    def contain(self, local: datetime) -> bool:
        """Whether the clock shows a time in them."""
        minute, day = 60 * local.hour + local.minute, local.weekday()
        if self.start < self.end:
            return day in self.days and self.start <= minute < self.end
        yesterday = (day - 1) % 7
        began_today = day in self.days and minute >= self.start
        return began_today or (yesterday in self.days and minute < self.end)

    @override
    def __str__(self) -> str:
        """As `parse_hours` reads it."""
        clock = f"{_clock(self.start)}-{_clock(self.end)}"
        return clock if self.days == EVERY_DAY else f"{_day_words(self.days)} {clock}"


def parse_hours(text: str) -> Hours:
    """`22:00-07:00` on every day, `Mon-Fri 18:00-08:00` or `Sat 00:00-24:00`. Raises BadHours."""
    match = _FORM.fullmatch(text.strip())
    expected = f"hours {text!r}: expected such as 22:00-07:00 or Mon-Fri 18:00-08:00"
    if match is None:
        raise BadHours(expected)
    first, last, *clock = match.groups()
    start_hour, start_minute, end_hour, end_minute = map(int, clock)
    start, end = 60 * start_hour + start_minute, 60 * end_hour + end_minute
    if max(start_minute, end_minute) > 59 or start >= DAY_MINUTES or end > DAY_MINUTES:
        raise BadHours(f"{expected}, from 00:00 to 24:00")
    names = [day.capitalize() for day in (first, last) if day is not None]
    if any(day not in DAYS for day in names):
        raise BadHours(f"{expected}, with days among {', '.join(DAYS)}")
    if start == end:
        raise BadHours(f"{expected}; these hours are empty: for a whole day say 00:00-24:00")
    return Hours(days=_days(names), start=start, end=end)


def are_open(hours: Iterable[Hours], local: datetime) -> bool:
    """Whether the clock shows a time in any of them."""
    return any(each.contain(local) for each in hours)


def next_change(hours: Sequence[Hours], *, now: float, local: LocalTime) -> float | None:
    """When they open, or close if they are open now; Unix seconds. None: not in two weeks.

    Where the clock jumps, hours begin or end with the jump that leads into or out of them.
    """
    is_open = are_open(hours, local(now))
    for at in _candidates(hours, now, local):
        if are_open(hours, local(at)) != is_open:
            return at
    return None


def seconds_to_announce(hours: Sequence[Hours], *, now: float, local: LocalTime) -> float | None:
    """How long work may take that begins now, to be told to whoever gives it out; None: any time.

    In the second half of its hours a worker takes what it can finish in them. In the first half it
    takes anything, and goes on or hands over when they end: work that is longer than all of them
    would otherwise never be done by those who have no others.
    """
    if not are_open(hours, local(now)):
        return None
    closes_at = next_change(hours, now=now, local=local)
    if closes_at is None:
        return None
    passed = [at for at in _boundaries(hours, now, local) if at <= now]
    changes = [at for at in passed if not are_open(hours, local(at - 1.0))]
    opened_at = max(changes, default=now - _DAY_SECONDS)
    left = closes_at - now
    return left if left < now - opened_at else None


def _candidates(hours: Sequence[Hours], now: float, local: LocalTime) -> list[float]:
    """Every time from now on at which hours may begin or end, sorted."""
    return sorted(at for at in _boundaries(hours, now, local) if at > now)


def _boundaries(hours: Sequence[Hours], now: float, local: LocalTime) -> set[float]:
    """Every time at which a boundary is shown, and every jump of the clock, from a day ago on."""
    found = set()
    # Half a day at a time: where the clock jumps, whole days may leave a date out.
    for half in range(-2, 2 * _HORIZON_DAYS + 2):
        near = now + half * _DAY_SECONDS / 2
        offsets = {_offset(local(near + shift)) for shift in (-_DAY_SECONDS, 0, _DAY_SECONDS)}
        if _offset(local(near)) != _offset(local(near + _DAY_SECONDS / 2)):
            found.add(_jump(near, near + _DAY_SECONDS / 2, local))
        midnight = local(near).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=UTC)
        for minute in {at for each in hours for at in (each.start, each.end)}:
            shown = (midnight + timedelta(minutes=minute)).timestamp()
            found.update(shown - offset for offset in offsets)
    return found


def _jump(before: float, after: float, local: LocalTime) -> float:
    """The first second after a change of the offset between two times."""
    low, high = int(before), int(after) + 1
    while high - low > 1:
        middle = (low + high) // 2
        if _offset(local(middle)) == _offset(local(before)):
            low = middle
        else:
            high = middle
    return float(high)


def _offset(local: datetime) -> float:
    offset = local.utcoffset()
    assert offset is not None, "a local time knows its offset"
    return offset.total_seconds()


def _days(names: Sequence[str]) -> frozenset[int]:
    if not names:
        return EVERY_DAY
    first, last = DAYS.index(names[0]), DAYS.index(names[-1])
    return frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))


def _day_words(days: frozenset[int]) -> str:
    first = next(day for day in sorted(days) if (day - 1) % 7 not in days)
    last = (first + len(days) - 1) % 7
    return DAYS[first] if first == last else f"{DAYS[first]}-{DAYS[last]}"


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"
