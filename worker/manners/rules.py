"""May training run now? Decided from what the owner allows, ordered, and does. Pure."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from worker.manners.hours import Hours, LocalTime, are_open, next_change, seconds_to_announce

SETTLE_SECONDS = 30.0
"""What stood against training must be over for so long: a loose plug or a busy program would start
and stop it all the time."""

CALM_SHARE = 0.8
"""Others must use less than so much of what they may, before they count as calm again."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What the owner allows. None: whatever they do.

    Training waits until they have been away for `idle_seconds`, for one of `hours` (none: at any
    time), for mains power unless `on_battery`, and until other programs use at most the share
    `max_other_cpu` of all cores.
    """

    idle_seconds: float | None = None
    hours: tuple[Hours, ...] = ()
    on_battery: bool = False
    max_other_cpu: float | None = None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was seen of this machine. None: that cannot be told here.

    `other_cpu` is the share of all cores that programs other than ours used lately.
    """

    idle_seconds: float | None = None
    on_battery: bool | None = None
    other_cpu: float | None = None


@dataclass(frozen=True, kw_only=True)
class Pause:
    """What the owner ordered: no training until `until`, Unix seconds; None: until `resume`."""

    until: float | None


@dataclass(frozen=True, kw_only=True)
class Past:
    """When other programs were too busy last, and when this machine ran on battery last."""

    crowded_at: float = -math.inf
    unplugged_at: float = -math.inf


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether training may run. `reason` says why not, for people; empty if it may.

    `until` is when that changes by itself, Unix seconds, if nobody does anything; None: nobody
    knows.
    """

    may_train: bool
    reason: str = ""
    until: float | None = None


@dataclass(frozen=True, kw_only=True)
class _Obstacle:
    """`is_over` by itself at a time, None: nobody knows when."""

    reason: str
    until: float | None


def local_time(at: float) -> datetime:
    """What this machine's clock shows."""
    return datetime.fromtimestamp(at, tz=UTC).astimezone()


def remembered(past: Past, rules: Rules, facts: Facts, *, now: float) -> Past:
    """The past, with these facts in it."""
    limit = rules.max_other_cpu
    crowded_at, unplugged_at = past.crowded_at, past.unplugged_at
    if limit is not None and facts.other_cpu is not None:
        was_crowded = _is_recent(past.crowded_at, now)
        if facts.other_cpu > (CALM_SHARE * limit if was_crowded else limit):
            crowded_at = now
    if facts.on_battery and not rules.on_battery:
        unplugged_at = now
    return Past(crowded_at=crowded_at, unplugged_at=unplugged_at)


def judge(
    rules: Rules,
    facts: Facts,
    pause: Pause | None,
    *,
    now: float,
    past: Past | None = None,
    local: LocalTime = local_time,
) -> Verdict:
    """What follows for training. `past` knows these facts already (`remembered`)."""
    obstacles = list(_obstacles(rules, facts, pause, now, past or Past()))
    ends = [each.until for each in obstacles]
    until = None if None in ends else max([now, *(end for end in ends if end is not None)])
    if rules.hours and not are_open(rules.hours, local(now)):
        opens_at = next_change(rules.hours, now=now, local=local)
        obstacles.insert(1 if pause and obstacles else 0, _closed(rules, opens_at, now, local))
    if not obstacles:
        closes_at = next_change(rules.hours, now=now, local=local) if rules.hours else None
        return Verdict(may_train=True, until=closes_at)
    if until is not None and rules.hours and not are_open(rules.hours, local(until)):
        until = next_change(rules.hours, now=until, local=local)
    return Verdict(may_train=False, reason=obstacles[0].reason, until=until)


def _obstacles(
    rules: Rules, facts: Facts, pause: Pause | None, now: float, past: Past
) -> Iterator[_Obstacle]:
    """All that is in the way but the hours, what people should hear of first at the beginning."""
    if pause is not None and (pause.until is None or now < pause.until):
        yield _Obstacle(reason="paused by its owner", until=pause.until)
    yield from _on_battery(rules, facts, now, past)
    yield from _in_use(rules, facts, now)
    yield from _crowded(rules, facts, now, past)


def _on_battery(rules: Rules, facts: Facts, now: float, past: Past) -> Iterator[_Obstacle]:
    if rules.on_battery:
        return
    settled_at = past.unplugged_at + SETTLE_SECONDS
    if facts.on_battery:
        yield _Obstacle(
            reason="this computer runs on battery; training goes on when it is plugged in",
            until=None,
        )
    elif _is_recent(past.unplugged_at, now):
        yield _Obstacle(
            reason="this computer was on battery a moment ago; training goes on in "
            f"{in_words(settled_at - now)}",
            until=settled_at,
        )


def _in_use(rules: Rules, facts: Facts, now: float) -> Iterator[_Obstacle]:
    allowed = rules.idle_seconds
    if allowed is None:
        return
    if facts.idle_seconds is None:
        yield _Obstacle(
            reason="nothing here tells whether you use this computer; give --activity-file, or "
            "leave out --only-when-idle",
            until=None,
        )
    elif facts.idle_seconds < allowed:
        yield _Obstacle(
            reason=f"you used this computer {in_words(facts.idle_seconds)} ago; training goes on "
            f"after {in_words(allowed)} without you",
            until=now + allowed - facts.idle_seconds,
        )


def _crowded(rules: Rules, facts: Facts, now: float, past: Past) -> Iterator[_Obstacle]:
    limit = rules.max_other_cpu
    settled_at = past.crowded_at + SETTLE_SECONDS
    if limit is None or not _is_recent(past.crowded_at, now):
        return
    if past.crowded_at == now:
        used = 0.0 if facts.other_cpu is None else facts.other_cpu
        yield _Obstacle(
            reason=f"other programs use {used:.0%} of the CPU, you allow training beside "
            f"{limit:.0%}; it goes on when they are done",
            until=None,
        )
    else:
        yield _Obstacle(
            reason="other programs were busy a moment ago; training goes on in "
            f"{in_words(settled_at - now)}",
            until=settled_at,
        )


def _is_recent(at: float, now: float) -> bool:
    """A clock that was set back makes nothing recent for longer."""
    return 0 <= now - at < SETTLE_SECONDS


def _closed(rules: Rules, opens_at: float | None, now: float, local: LocalTime) -> _Obstacle:
    words = f"outside of the hours that you allow ({', '.join(map(str, rules.hours))})"
    if opens_at is not None:
        form = "%H:%M" if opens_at - now < 12 * 3600 else "%a %H:%M"
        words += f"; training goes on at {local(opens_at):{form}}"
    return _Obstacle(reason=words, until=opens_at)


def available_seconds(
    rules: Rules, *, stay_seconds: float | None, now: float, local: LocalTime = local_time
) -> float | None:
    """How long work may take that begins now, by the hours and by how long the worker stays.

    None: any time.
    """
    left = seconds_to_announce(rules.hours, now=now, local=local)
    return min((one for one in (left, stay_seconds) if one is not None), default=None)


def in_words(seconds: float) -> str:
    """`12 s`, `5 minutes`, `3 hours`."""
    whole = max(0, round(seconds))
    if whole < 120:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"
