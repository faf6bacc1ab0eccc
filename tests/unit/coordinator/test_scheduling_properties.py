"""Promises of the scheduler's index over any work, any workers, and any series of changes."""

from dataclasses import replace

import hypothesis.strategies as st
from hypothesis import given, settings

from coordinator.scheduling import (
    Backup,
    Candidate,
    Choice,
    Index,
    NoWork,
    Running,
    Work,
    find_obstacle,
)
from protocol.capability import Capability

GIGABYTE = 1_000_000_000
NAMES = "abcd"

amounts = st.sampled_from([0.5, 1.0, 2.0, 4.0, 8.0]).map(
    lambda gigabytes: int(gigabytes * GIGABYTE)
)


@st.composite
def works(draw) -> Work:
    cpu = draw(amounts)
    return Work(
        assignment=f"p{draw(st.integers(0, 9))}",
        words="an expert",
        flops=draw(st.sampled_from([0.0, 1e9, 2e9, 5e10, 1e12]) | st.floats(0, 1e13)),
        memory_bytes={"cpu": cpu, "cuda": draw(amounts), "mps": cpu},
        disk_bytes=draw(amounts),
        needs_trust=draw(st.booleans()),
        excluded=draw(st.frozensets(st.sampled_from(NAMES), max_size=2)),
        ran_out=draw(st.none() | st.dictionaries(st.sampled_from(NAMES), amounts, max_size=2)),
        not_before=draw(st.sampled_from([0.0, 0.0, 50.0, 150.0])),
        inputs=draw(st.frozensets(st.sampled_from("xyz"))),
        curve=draw(st.sampled_from(["", "", "curve 1", "curve 2"])),
        num_steps=draw(st.integers(1, 3)),
    )


@st.composite
def candidates(draw) -> Candidate:
    speed = draw(st.sampled_from([1e6, 1e8, 1e9, 1e16]) | st.floats(1e6, 1e12))
    return Candidate(
        worker=draw(st.sampled_from(NAMES)),
        capability=Capability(
            device=draw(st.sampled_from(["cpu", "cuda"])),
            device_name="",
            num_threads=1,
            total_memory_bytes=64 * GIGABYTE,
            free_memory_bytes=draw(amounts),
            free_disk_bytes=draw(amounts),
            flops_per_second=speed,
            bfloat16=False,
        ),
        speed=speed,
        busy_until=draw(st.sampled_from([0.0, 100.0]) | st.floats(0, 1e4)),
        trusted=draw(st.booleans()),
        proven=draw(st.booleans()),
        cached=draw(st.frozensets(st.sampled_from("xyz"))),
        available_until=draw(st.none() | st.floats(0, 1e5)),
    )


@st.composite
def runnings(draw) -> Running:
    work = draw(works())
    number = draw(st.integers(0, 3))
    backup = draw(st.booleans())
    return Running(
        work=replace(work, assignment=f"r{number}{'+' if backup else ''}"),
        worker=draw(st.sampled_from(NAMES)),
        finish=draw(st.floats(0, 1e5)),
        stalls_at=draw(st.sampled_from([50.0, float("inf")])),
        backed_up=draw(st.booleans()) and not backup,
        backup_of=f"r{number}" if backup else None,
    )


changes = st.lists(
    works()
    | candidates()
    | runnings()
    | st.tuples(st.just("work"), st.sampled_from([f"p{n}" for n in range(10)]))
    | st.tuples(st.just("worker"), st.sampled_from(NAMES))
    | st.tuples(st.just("running"), st.sampled_from(["r0", "r1", "r2", "r0+", "r1+"])),
    max_size=30,
)

Content = tuple[dict[str, Work], dict[str, Candidate], dict[str, Running]]


def apply(index: Index, content: Content, change) -> None:
    work, workers, running = content
    if isinstance(change, Work):
        index.put_work(change)
        work[change.assignment] = change
    elif isinstance(change, Candidate):
        index.put_worker(change)
        workers[change.worker] = change
    elif isinstance(change, Running):
        index.put_running(change)
        running[change.work.assignment] = change
    else:
        kind, name = change
        {"work": index.drop_work, "worker": index.drop_worker, "running": index.drop_running}[kind](
            name
        )
        {"work": work, "worker": workers, "running": running}[kind].pop(name, None)


def build(series, *, decide_between: bool = False) -> tuple[Index, Content]:
    index, content = Index(), ({}, {}, {})
    for change in series:
        apply(index, content, change)
        if decide_between:
            for name in content[1]:
                index.choose(name, now=10.0, waits_since=None, patience_seconds=30.0)
    return index, content


def answers(index: Index, workers, *, now: float = 100.0, waits_since: float | None = None):
    return {
        name: index.choose(name, now=now, waits_since=waits_since, patience_seconds=30.0)
        for name in sorted(workers)
    }


@settings(deadline=None, max_examples=60)
@given(changes, st.randoms(use_true_random=False))
def test_an_index_with_a_past_decides_as_a_fresh_one_with_the_same_content(series, random):
    used, content = build(series, decide_between=True)
    rest = [thing for table in content for thing in table.values()]
    random.shuffle(rest)
    fresh, _ = build(rest)
    assert answers(used, content[1]) == answers(fresh, content[1])
    assert used.expected_end(100.0) == fresh.expected_end(100.0)
    for name in content[1]:
        assert used.why(name, now=100.0) == fresh.why(name, now=100.0)


@settings(deadline=None, max_examples=60)
@given(changes, st.sampled_from([None, 0.0, -1e20]))
def test_nobody_gets_what_a_requirement_forbids(series, waits_since):
    index, (work, workers, running) = build(series)
    for name, answer in answers(index, workers, waits_since=waits_since).items():
        if isinstance(answer, Choice):
            given_work = work[answer.assignment]
        elif isinstance(answer, Backup):
            held = running[answer.of]
            assert held.backup_of is None
            assert held.worker != name
            if held.backed_up:
                assert running[answer.replaces].backup_of == answer.of
            given_work = held.work
        else:
            continue
        assert find_obstacle(given_work, workers[name], now=100.0) is None


@settings(deadline=None, max_examples=60)
@given(changes)
def test_with_patience_at_an_end_every_worker_gets_some_work_that_it_may_take(series):
    index, (work, workers, _) = build(series)
    for name, answer in answers(index, workers, waits_since=-1e20).items():
        limited = replace(workers[name], proven=True)
        feasible = [one for one in work.values() if find_obstacle(one, limited, now=100.0) is None]
        counted = workers[name].proven or workers[name].available_until is None
        if feasible and counted:
            assert not isinstance(answer, NoWork)


@settings(deadline=None, max_examples=60)
@given(changes)
def test_while_work_fits_somebody_who_is_free_somebody_gets_some(series):
    index, (work, workers, running) = build(series)
    busy = {held.worker for held in running.values()}
    free = {
        name: one for name, one in workers.items() if one.busy_until <= 100.0 and name not in busy
    }
    able = [
        (one, candidate)
        for one in work.values()
        for candidate in workers.values()
        if find_obstacle(one, candidate, now=100.0) is None
    ]
    if able and len(free) == len(workers) and all(c.available_until is None for c in free.values()):
        answered = answers(index, workers).values()
        assert any(not isinstance(answer, NoWork) for answer in answered)


@settings(deadline=None, max_examples=60)
@given(changes)
def test_who_waits_is_told_so_and_who_cannot_is_told_what_lacks(series):
    index, (work, workers, _) = build(series)
    for name, answer in answers(index, workers).items():
        if isinstance(answer, NoWork):
            verdicts = index.why(name, now=100.0)
            assert len(verdicts) == len(work)
            assert answer.waits == any(verdict.obstacle is None for verdict in verdicts)
            assert not any(verdict.given for verdict in verdicts)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["curve 1", "curve 2", ""]), st.integers(1, 9), amounts),
        min_size=1,
        max_size=8,
    ),
    st.lists(candidates(), min_size=1, max_size=3),
)
def test_of_one_curve_nobody_is_given_the_longer_piece_before_a_shorter_one(pieces, workers):
    index, work = Index(), {}
    for number, (curve, steps, memory) in enumerate(pieces):
        one = Work(
            assignment=f"p{number}",
            words="an expert",
            flops=1e10 * steps,
            memory_bytes=dict.fromkeys(("cpu", "cuda", "mps"), memory),
            disk_bytes=0,
            curve=curve,
            num_steps=steps,
        )
        work[one.assignment] = one
        index.put_work(one)
    for candidate in workers:
        index.put_worker(candidate)
    for candidate in {one.worker: one for one in workers}.values():
        for waits_since in (None, -1e20):
            answer = index.choose(
                candidate.worker, now=0.0, waits_since=waits_since, patience_seconds=30.0
            )
            if not isinstance(answer, Choice):
                continue
            given_work = work[answer.assignment]
            shorter = [
                one
                for one in work.values()
                if one.curve == given_work.curve != "" and one.num_steps < given_work.num_steps
            ]
            limited = [one for one in shorter if find_obstacle(one, candidate, now=0.0) is None]
            assert not limited
