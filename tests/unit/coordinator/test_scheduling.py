"""What the scheduler's index decides, case by case."""

import pytest

from coordinator.scheduling import Backup, Candidate, Choice, Index, NoWork, Running, Work
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
    device: str = "cpu",
    **more,
) -> Candidate:
    capability = Capability(
        device=device,
        device_name="",
        num_threads=1,
        total_memory_bytes=64 * GIGABYTE,
        free_memory_bytes=int(memory * GIGABYTE),
        free_disk_bytes=int(disk * GIGABYTE),
        flops_per_second=speed,
        bfloat16=False,
    )
    return Candidate(worker=name, capability=capability, speed=speed, busy_until=busy_until, **more)


def index(*things: Work | Candidate | Running) -> Index:
    made = Index()
    for thing in things:
        if isinstance(thing, Work):
            made.put_work(thing)
        elif isinstance(thing, Candidate):
            made.put_worker(thing)
        else:
            made.put_running(thing)
    return made


def ask(made: Index, name: str, *, now: float = 0.0, waits_since: float | None = None):
    return made.choose(name, now=now, waits_since=waits_since, patience_seconds=30.0)


def test_a_slow_worker_waits_for_a_busy_one_that_still_ends_sooner():
    made = index(
        work("python", flops=4e10), worker("slow"), worker("fast", speed=1e9, busy_until=10.0)
    )
    assert ask(made, "slow") == NoWork(
        "python expert: worker fast is expected to finish it sooner (50 s; you 400 s)", waits=True
    )


def test_a_slow_worker_takes_what_the_busy_one_would_end_later():
    made = index(
        work("python", flops=4e10), worker("slow"), worker("fast", speed=1e9, busy_until=1000.0)
    )
    assert ask(made, "slow") == Choice(
        "python",
        "python expert: needs 500 MB, you offer 1.00 GB; you finish it in time (400 s of 400 s)",
    )


def test_a_worker_waits_at_most_its_patience_or_half_of_its_own_time():
    made = index(work("a", flops=4e10), worker("slow"), worker("liar", speed=1e16))
    assert isinstance(ask(made, "slow", now=199.0, waits_since=0.0), NoWork)
    given = ask(made, "slow", now=200.0, waits_since=0.0)
    assert isinstance(given, Choice)
    assert "you waited long enough for others (200 s; you need 400 s)" in given.reason


def test_an_unproven_claim_counts_as_ten_workers_at_most():
    pieces = [work(f"a{number}", flops=1e10) for number in range(50)]
    honest = [worker(f"w{number}") for number in range(3)]
    liar = worker("liar", speed=1e16, proven=False)
    assert isinstance(ask(index(*pieces, *honest, liar), "w0"), Choice)
    assert isinstance(ask(index(*pieces, *honest, worker("liar", speed=1e16)), "w0"), NoWork)


def test_the_largest_piece_that_it_finishes_in_time_comes_first():
    made = index(
        *(work(f"a{size}", flops=size * 1e9) for size in (1, 2, 8)),
        worker("fast", speed=9e8),
        worker("slow", speed=2e8),
    )
    assert ask(made, "fast") == ask(made, "fast")
    assert ask(made, "fast").assignment == "a8"
    assert ask(made, "slow").assignment == "a2"


def test_what_few_workers_can_take_comes_before_what_many_can():
    made = index(
        work("common", flops=2e9),
        work("rare", flops=1e9, memory=8.0),
        worker("large", memory=16.0),
        worker("small"),
        worker("small too"),
    )
    assert ask(made, "large").assignment == "rare"


def test_a_kind_that_few_can_take_does_not_let_slow_workers_dawdle():
    made = index(
        *(work(f"rare{number}", flops=1e10, memory=8.0) for number in range(20)),
        work("common", flops=1e10),
        worker("large", memory=16.0),
        worker("fast", speed=1e9),
        worker("slow", speed=1e7),
    )
    assert ask(made, "slow").waits
    assert ask(made, "fast").assignment == "common"


def test_of_equally_large_pieces_it_gets_the_one_whose_blobs_it_has():
    made = index(
        work("a", flops=1e9, inputs=frozenset({"parent", "shard a"})),
        work("b", flops=0.97e9, inputs=frozenset({"parent", "shard b"})),
        work("c", flops=0.9e9, inputs=frozenset({"parent", "shard c"})),
        worker("me", cached=frozenset({"parent", "shard b", "shard c"})),
    )
    assert ask(made, "me").assignment == "b"


def test_the_reason_for_nothing_names_what_lacks_least_and_by_how_much():
    made = index(
        work("huge", memory=99),
        work("big", memory=9.1),
        work("disk", disk=500),
        worker("me", memory=7.6),
    )
    assert ask(made, "me") == NoWork("big expert: needs 9.10 GB free memory, you have 7.60 GB")


def test_memory_is_that_of_the_workers_own_device():
    small_on_gpu = work("a")
    needs = {"cpu": 2 * GIGABYTE, "cuda": GIGABYTE // 2, "mps": 2 * GIGABYTE}
    object.__setattr__(small_on_gpu, "memory_bytes", needs)
    assert isinstance(ask(index(small_on_gpu, worker("me", device="cuda")), "me"), Choice)
    assert ask(index(small_on_gpu, worker("me")), "me") == NoWork(
        "a expert: needs 2.00 GB free memory, you have 1.00 GB"
    )


def test_after_running_out_of_memory_a_worker_must_offer_more_than_before():
    item = work("python", ran_out={"me": GIGABYTE})
    assert ask(index(item, worker("me")), "me") == NoWork(
        "python expert: it ran out of memory here with 1.00 GB, you have 1.00 GB"
    )
    assert isinstance(ask(index(item, worker("me", memory=2.0)), "me"), Choice)


def test_who_ran_out_of_memory_gets_smaller_work_until_more_is_free():
    small, large = work("small", memory=0.3), work("large", memory=0.5, flops=2e9)
    failed = frozenset({(GIGABYTE // 2, GIGABYTE)})
    assert ask(index(small, large, worker("me")), "me").assignment == "large"
    made = index(small, large, worker("me", ran_out=failed))
    assert ask(made, "me").assignment == "small"
    verdicts = made.why("me", now=0.0)
    assert verdicts[0].obstacle.words == (
        "needs 500 MB memory, you ran out of it on work of 500 MB with no less free than now"
    )
    with_more = worker("me", ran_out=failed, memory=1.1)
    assert ask(index(small, large, with_more), "me").assignment == "large"


def test_a_corrected_estimate_says_that_it_was_measured():
    item = work("python", memory=2.0, memory_factors={"cpu": 1.25})
    assert ask(index(item, worker("me")), "me") == NoWork(
        "python expert: needs 2.00 GB free memory (1.25 of the estimate, as measured), "
        "you have 1.00 GB"
    )


def test_a_seed_goes_to_trusted_workers_only():
    made = index(work("seed", needs_trust=True), worker("me", trusted=False))
    assert ask(made, "me") == NoWork(
        "seed expert: it is for workers that the operator marked trusted"
    )


def test_a_worker_that_leaves_soon_gets_what_it_finishes_before():
    made = index(
        work("long", flops=1e10), work("short", flops=1e9), worker("me", available_until=20.0)
    )
    assert ask(made, "me").assignment == "short"
    made.drop_work("short")
    assert ask(made, "me", now=10.0) == NoWork("long expert: needs 100 s, you expect to stay 10 s")


def test_work_that_came_back_is_not_offered_before_its_pause_has_ended():
    made = index(work("a", not_before=10.0), worker("me"))
    assert ask(made, "me", now=4.0) == NoWork("a expert: it is offered again in 6.0 s")
    assert isinstance(ask(made, "me", now=10.0), Choice)


def test_a_slow_worker_gets_at_once_what_all_faster_ones_are_excluded_from():
    made = index(
        work("a", flops=1e10, excluded=frozenset({"fast"})), worker("fast", speed=1e9), worker("me")
    )
    assert "no other worker here can take it" in ask(made, "me").reason


def running(name: str, holder: str, *, finish: float, flops: float = 1e9, **more) -> Running:
    return Running(work=work(name, flops=flops), worker=holder, finish=finish, **more)


def test_an_idle_worker_backs_up_who_needs_clearly_longer_the_latest_first():
    made = index(
        worker("me", speed=1e8),
        worker("slow", speed=1e7),
        worker("slower", speed=1e7),
        running("a", "slow", finish=100.0),
        running("b", "slower", finish=200.0),
    )
    assert ask(made, "me") == Backup(
        "b",
        "b expert: a backup for worker slower, who is expected to need 200 s more (you 10 s)",
    )


@pytest.mark.parametrize(
    "held",
    [
        running("a", "me", finish=1000.0),
        running("a", "other", finish=35.0),
        running("a", "other", finish=1000.0, flops=7e10),
        running("a", "other", finish=1000.0, backed_up=True),
        Running(work=work("a", excluded=frozenset({"me"})), worker="other", finish=1000.0),
        Running(work=work("a", memory=9.0), worker="other", finish=1000.0),
    ],
    ids=["own", "no gain", "not clearly sooner", "handed in", "excluded", "too large"],
)
def test_no_backup_without_a_gain_or_a_right_to_it(held):
    assert isinstance(ask(index(worker("me"), worker("other", speed=1e7), held), "me"), NoWork)


def test_a_backup_that_is_too_slow_as_well_is_replaced():
    made = index(
        worker("me", speed=1e9),
        worker("slow", speed=1e7),
        worker("slow too", speed=1e7),
        running("a", "slow", finish=1000.0, flops=1e10, backed_up=True),
        running("a+", "slow too", finish=700.0, flops=1e10, backup_of="a"),
    )
    answer = ask(made, "me")
    assert (answer.of, answer.replaces) == ("a", "a+")
    made.put_running(running("a+", "slow too", finish=14.0, flops=1e10, backup_of="a"))
    assert isinstance(ask(made, "me"), NoWork)


def test_what_ends_well_after_the_rest_is_backed_up_while_other_work_is_open():
    made = index(
        *(work(f"a{number}", flops=1e9) for number in range(30)),
        *(worker(f"w{number}") for number in range(3)),
        worker("stuck", speed=1e6),
        running("late", "stuck", finish=9e3, flops=9e9),
    )
    assert ask(made, "w0").of == "late"


def test_a_lease_without_progress_is_waited_for_less_and_less():
    held = running("b", "fast", finish=10.0, stalls_at=5.0, backed_up=True)
    made = index(work("a", flops=4e10), worker("me"), worker("fast", speed=1e9), held)
    assert isinstance(ask(made, "me", now=5.0), NoWork)
    assert isinstance(ask(made, "me", now=1000.0), Choice)


def test_why_gives_a_verdict_on_every_open_assignment():
    made = index(
        work("big", memory=9.1),
        work("large", flops=4e10),
        work("small", flops=1e9),
        worker("me"),
        worker("fast", speed=1e9),
    )
    big, large, small = made.why("me", now=0.0)
    assert big.obstacle is not None
    assert (big.obstacle.needed, big.obstacle.held) == (9.1e9, 1e9)
    assert (large.obstacle, large.finish, large.sooner) == (None, 400.0, "fast")
    assert large.sooner_finish == 40.0
    assert small.given
    assert small.finish == 10.0
    assert made.why("me", now=0.0, limit=2) == [big, large]


def test_the_end_is_unknown_while_some_work_fits_nobody():
    made = index(work("a", flops=1e9), worker("me", busy_until=5.0))
    assert made.expected_end(0.0) == pytest.approx(15.0, rel=0.01)
    made.put_running(running("c", "me", finish=500.0))
    made.put_running(running("c+", "you", finish=100.0, backup_of="c"))
    made.drop_work("a")
    assert made.expected_end(0.0) == 100.0
    made.put_work(work("b", memory=99))
    assert made.expected_end(0.0) is None


def test_work_that_everybody_here_is_excluded_from_is_named():
    made = index(work("a", excluded=frozenset({"me"})), worker("me"))
    assert made.deserted() == (
        "a (a expert) waits for another worker: the work of all 1 here on it was not accepted"
    )
    made.put_worker(worker("you"))
    assert made.deserted() == ""


@pytest.mark.parametrize("flops", [-1.0, float("nan"), float("inf")])
def test_work_without_a_size_is_refused(flops):
    with pytest.raises(ValueError, match="flops"):
        work("a", flops=flops)


def test_a_worker_that_was_not_put_cannot_ask():
    with pytest.raises(KeyError):
        ask(index(work("a")), "nobody")


def test_each_device_of_a_worker_is_counted_by_its_own_speed_and_end():
    fast = worker("me", speed=1e9, busy_until=10.0, device_number=1)
    made = index(work("python", flops=4e10), worker("me"), fast)
    assert ask(made, "me") == NoWork(
        "python expert: another of your devices is expected to finish it sooner (50 s; you 400 s)",
        waits=True,
    )
    assert isinstance(ask(made, "me#1", now=10.0), Choice)
    (verdict,) = made.why("me", now=0.0)
    assert verdict.sooner == "me"
    made.drop_worker("me#1")
    assert isinstance(ask(made, "me"), Choice)


def test_no_device_backs_up_another_one_of_its_worker_nor_of_the_backup_s():
    fast = worker("me", speed=1e9, device_number=1)
    straggler = running("a", "me", finish=1000.0)
    assert isinstance(ask(index(worker("me", speed=1e7), fast, straggler), "me#1"), NoWork)
    theirs = running("a", "other", finish=1000.0, backed_up=True)
    mine = running("a+", "me", finish=900.0, backup_of="a")
    assert isinstance(ask(index(worker("me", speed=1e7), fast, theirs, mine), "me#1"), NoWork)
    assert isinstance(
        ask(index(fast, theirs, running("a+", "third", finish=900.0)), "me#1"), Backup
    )


def test_what_a_worker_is_excluded_from_all_of_its_devices_are():
    second = worker("me", device_number=1)
    made = index(work("python", excluded=frozenset({"me"})), worker("me"), second)
    assert "your earlier work on it was not accepted" in ask(made, "me#1").reason
    assert "all 1 here" in made.deserted()
    made.put_worker(worker("other"))
    assert made.deserted() == ""
    assert isinstance(ask(made, "other"), Choice)


def test_memory_that_one_device_lacked_another_one_may_have():
    second = worker("me", device_number=1)
    made = index(work("python", ran_out={"me": 2 * GIGABYTE}), worker("me"), second)
    assert isinstance(ask(made, "me"), NoWork)
    assert ask(made, "me#1").assignment == "python"
