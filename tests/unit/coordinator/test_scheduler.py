"""Promises of the scheduler over any open work and any workers."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from coordinator.scheduler import (
    Candidate,
    Choice,
    NoWork,
    Work,
    choose,
    expected_end,
    find_obstacle,
    make_schedule,
)
from protocol.capability import Capability

GIGABYTE = 1_000_000_000


def work(name: str, *, flops: float = 1e9, memory: float = 0.5, disk: float = 1.0, **more) -> Work:
    return Work(
        assignment=name,
        words=f"{name} expert",
        flops=flops,
        memory_bytes=dict.fromkeys(("cpu", "cuda", "mps"), int(memory * GIGABYTE)),
        disk_bytes=int(disk * GIGABYTE),
        **more,
    )


def worker(
    name: str,
    *,
    speed: float = 1e8,
    memory: float = 1.0,
    disk: float = 10.0,
    busy_until: float = 0.0,
    trusted: bool = True,
) -> Candidate:
    capability = Capability(
        device="cpu",
        device_name="",
        num_threads=1,
        total_memory_bytes=64 * GIGABYTE,
        free_memory_bytes=int(memory * GIGABYTE),
        free_disk_bytes=int(disk * GIGABYTE),
        flops_per_second=speed,
        bfloat16=False,
    )
    return Candidate(worker=name, capability=capability, busy_until=busy_until, trusted=trusted)


works = st.lists(
    st.builds(
        work,
        st.uuids().map(str),
        flops=st.floats(0, 1e12),
        memory=st.floats(0.1, 8),
        disk=st.floats(0.1, 8),
        needs_trust=st.booleans(),
        excluded=st.sets(st.sampled_from("abcd"), max_size=2).map(frozenset),
    ),
    max_size=8,
    unique_by=lambda item: item.assignment,
)
workers = st.lists(
    st.builds(
        worker,
        st.sampled_from("abcd"),
        speed=st.floats(1e6, 1e12),
        memory=st.floats(0.1, 8),
        disk=st.floats(0.1, 8),
        busy_until=st.floats(0, 1e4),
        trusted=st.booleans(),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item.worker,
)


@given(works, workers)
def test_nobody_gets_what_does_not_fit(items, candidates):
    by_name = {item.assignment: item for item in items}
    for asking in candidates:
        choice = choose(items, candidates, asking=asking.worker, now=0.0)
        if isinstance(choice, Choice):
            chosen = by_name[choice.assignment]
            offered = asking.capability
            assert chosen.memory_bytes["cpu"] <= offered.free_memory_bytes
            assert chosen.disk_bytes <= offered.free_disk_bytes
            assert asking.worker not in chosen.excluded
            assert asking.trusted or not chosen.needs_trust


@given(works, workers)
def test_while_somebody_could_take_work_somebody_is_scheduled_to(items, candidates):
    possible = [
        item
        for item in items
        if any(find_obstacle(item, candidate) is None for candidate in candidates)
    ]
    schedule = make_schedule(items, candidates, now=0.0)
    assert {slot.work.assignment for slot in schedule.slots} == {
        item.assignment for item in possible
    }
    if possible and all(candidate.busy_until == 0.0 for candidate in candidates):
        answers = [choose(items, candidates, asking=c.worker, now=0.0) for c in candidates]
        assert any(isinstance(answer, Choice) for answer in answers)


@given(works, workers)
def test_a_worker_that_alone_could_take_the_work_gets_it_however_slow(items, candidates):
    for asking in candidates:
        alone = [item for item in items if find_obstacle(item, asking) is None]
        others = [candidate for candidate in candidates if candidate is not asking]
        nobody_else = all(
            find_obstacle(item, other) is not None for item in alone for other in others
        )
        if alone and nobody_else:
            assert isinstance(choose(items, candidates, asking=asking.worker, now=0.0), Choice)


@given(works, workers, st.randoms())
def test_the_schedule_does_not_depend_on_the_order_of_its_input(items, candidates, random):
    shuffled_items, shuffled = list(items), list(candidates)
    random.shuffle(shuffled_items)
    random.shuffle(shuffled)
    assert (
        make_schedule(items, candidates, now=0.0).slots
        == make_schedule(shuffled_items, shuffled, now=0.0).slots
    )


@given(works, workers)
def test_the_largest_work_is_placed_first_and_with_whoever_ends_it_soonest(items, candidates):
    slots = make_schedule(items, candidates, now=0.0).slots
    sizes = [slot.work.flops for slot in slots]
    assert sizes == sorted(sizes, reverse=True)
    if slots:
        ends = [
            candidate.busy_until + slots[0].work.flops / candidate.capability.flops_per_second
            for candidate in candidates
            if find_obstacle(slots[0].work, candidate) is None
        ]
        assert slots[0].finish == min(ends)


def test_a_slow_worker_waits_for_a_busy_one_that_still_ends_sooner():
    busy = worker("fast", speed=1e9, busy_until=10.0)
    answer = choose([work("python", flops=4e10)], [worker("slow"), busy], asking="slow", now=0.0)
    assert answer == NoWork(
        "python expert: worker fast is expected to finish it sooner (50 s; you 400 s)", waits=True
    )


def test_a_worker_that_waited_long_enough_gets_what_it_delays_least():
    liar = worker("liar", speed=1e16)
    items = [work("large", flops=4e10), work("small", flops=1e9)]
    told = choose(items, [worker("slow"), liar], asking="slow", now=29.0, waits_until=30.0)
    assert isinstance(told, NoWork)
    assert told.waits
    given = choose(items, [worker("slow"), liar], asking="slow", now=30.0, waits_until=30.0)
    assert isinstance(given, Choice)
    assert given.assignment == "small"


def test_a_slow_worker_takes_what_the_busy_one_would_end_later():
    busy = worker("fast", speed=1e9, busy_until=1000.0)
    answer = choose([work("python", flops=4e10)], [worker("slow"), busy], asking="slow", now=0.0)
    assert answer == Choice(
        "python",
        "python expert: needs 500 MB, you offer 1.00 GB; you finish it soonest "
        "(400 s; next best worker 1040 s)",
    )


def test_the_reason_for_nothing_names_what_lacks_least_and_by_how_much():
    items = [work("huge", memory=99), work("big", memory=9.1), work("disk", disk=500)]
    answer = choose(items, [worker("me", memory=7.6)], asking="me", now=0.0)
    assert answer == NoWork("big expert: needs 9.10 GB free memory, you have 7.60 GB")


def test_after_running_out_of_memory_a_worker_must_offer_more_than_before():
    item = work("python", ran_out={"me": GIGABYTE})
    same = choose([item], [worker("me", memory=1.0)], asking="me", now=0.0)
    assert same == NoWork("python expert: it ran out of memory here with 1.00 GB, you have 1.00 GB")
    assert isinstance(choose([item], [worker("me", memory=2)], asking="me", now=0.0), Choice)


def test_a_seed_goes_to_trusted_workers_only():
    item = work("seed", needs_trust=True)
    answer = choose([item], [worker("me", trusted=False)], asking="me", now=0.0)
    assert answer == NoWork("seed expert: it is for workers that the operator marked trusted")


def test_the_end_is_unknown_while_some_work_fits_nobody():
    ours = [worker("me", busy_until=5.0)]
    fits = make_schedule([work("a", flops=1e9)], ours, now=0.0)
    assert expected_end(fits, now=0.0) == pytest.approx(15.0)
    assert expected_end(make_schedule([work("b", memory=99)], ours, now=0.0), now=0.0) is None
