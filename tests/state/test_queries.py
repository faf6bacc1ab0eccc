"""Every named query gives on PostgreSQL what it gives on SQLite."""

import pytest
from story import ANNA, BERT, HEARTBEAT, Story

from coordinator.ledger import queries
from coordinator.lifecycle import SUBMISSION_INTERVALS, Refused
from protocol.errors import ErrorCode
from protocol.messages import Release
from protocol.views import ResultTable, TableRow
from shared.sizing import step_flops

NOBODY = "12D3KooW" + "C" * 44


@pytest.fixture
def story(ledger, make) -> Story:
    return Story(ledger, make)


@pytest.fixture
def read(story):
    """Ask a query by name."""

    def ask(query, *arguments, **named):
        with story.ledger.read() as connection:
            return query(connection, *arguments, **named)

    return ask


@pytest.fixture
def write(story):
    def tell(query, *arguments, **named):
        return story.write(lambda connection, _now: query(connection, *arguments, **named))

    return tell


def test_workers_are_found_by_token_name_page_and_sign_of_life(story, read, write, make):
    assert read(queries.worker_of_token, ANNA).worker == ANNA
    assert read(queries.worker_of_token, "another") is None
    assert read(queries.find_worker, NOBODY) is None
    sighting = queries.Sighting(
        token_expires_at=500.0, allowed_at=7.0, maddrs=("/ip4/127.0.0.1",), cached=("ab" * 32,)
    )
    write(queries.see_worker, ANNA, sighting, 50.0)
    write(queries.set_asked, ANNA, 60.0, waits_since=55.0)
    write(queries.set_certificate, ANNA, 400.0)
    write(queries.set_capability, ANNA, make.capability(num_threads=9))
    anna = read(queries.find_worker, ANNA)
    assert (anna.token_expires_at, anna.allowed_at, anna.seen_at) == (500.0, 7.0, 50.0)
    assert (anna.asked_at, anna.waits_since, anna.certificate_expires_at) == (60.0, 55.0, 400.0)
    assert (anna.maddrs, anna.cached) == (("/ip4/127.0.0.1",), {"ab" * 32})
    assert anna.capability.num_threads == 9
    assert [row.worker for row in read(queries.some_workers)] == [ANNA, BERT]
    assert [row.worker for row in read(queries.some_workers, after=ANNA)] == [BERT]
    assert [row.worker for row in read(queries.these_workers, [BERT, NOBODY])] == [BERT]
    assert [row.worker for row in read(queries.seen_workers, since=50.0)] == [ANNA]
    assert read(queries.seen_workers, since=50.1) == ()
    story.start(BERT, story.original)
    active = read(queries.active_workers, since=50.0)
    assert [row.worker for row in active] == [ANNA, BERT]


def test_a_nonce_is_used_once_until_it_is_forgotten(write):
    assert write(queries.use_nonce, "n", expires_at=5.0)
    assert not write(queries.use_nonce, "n", expires_at=5.0)
    write(queries.forget_nonces, 4.9)
    assert not write(queries.use_nonce, "n", expires_at=5.0)
    write(queries.forget_nonces, 5.0)
    assert write(queries.use_nonce, "n", expires_at=9.0)


def test_an_answer_is_kept_for_its_own_body_for_an_hour(read, write):
    write(queries.keep_answer, ANNA, "1" * 32, body_digest="b", answer="{}", now=10.0)
    assert read(queries.find_answer, ANNA, "1" * 32, "b") == "{}"
    assert read(queries.find_answer, BERT, "1" * 32, "b") is None
    reused = read(queries.find_answer, ANNA, "1" * 32, "other")
    assert isinstance(reused, Refused)
    assert reused.code is ErrorCode.REQUEST_REUSED
    write(queries.forget_answers, 3609.0)
    assert read(queries.find_answer, ANNA, "1" * 32, "b") == "{}"
    write(queries.forget_answers, 3610.0)
    assert read(queries.find_answer, ANNA, "1" * 32, "b") is None


def test_the_run_shows_its_phase_pause_and_roles(read, write):
    write(queries.set_phase, "training", "why", 5.0)
    write(queries.set_phase, "training", "why else", 6.0)
    write(queries.set_paused, True, reason="", now=7.0)
    write(queries.set_paused, True, reason="", now=8.0)
    write(queries.set_network, maddrs=("/ip4/1.2.3.4",), blob_url="http://x", now=9.0)
    run = read(queries.find_run)
    assert (run.phase, run.phase_since, run.phase_reason, run.paused) == (
        "training", 5.0, "why else", True,
    )  # fmt: skip
    assert (run.maddrs, run.blob_url) == (("/ip4/1.2.3.4",), "http://x")
    assert read(queries.role_beats) == {"network": 9.0}


def test_a_device_is_as_fast_as_it_trains_however_long_its_tiny_first_work_took_to_start(
    story, read
):
    held = story.start(ANNA, story.original)
    story.now += 14.0
    story.beat(held, 8, tokens_per_second=2.0 * story.spec.train.tokens_per_step)
    assert read(queries.observed_speeds)[ANNA] == pytest.approx(2.0 * step_flops(story.spec))
    (attempt,) = read(queries.progressed_attempts, since=0.0)
    assert attempt.speed(story.spec) == read(queries.observed_speeds)[ANNA]


def test_attempts_tell_progress_speed_and_memory(story, read, write):
    held = story.start(ANNA, story.original)
    story.now += 10.0
    story.beat(held, 8)
    (attempt,) = read(queries.progressed_attempts, since=0.0)
    assert (attempt.step, attempt.progressed_at) == (8, story.now)
    assert read(queries.progressed_attempts, since=story.now) == (attempt,)
    assert read(queries.progressed_attempts, since=story.now + 0.1) == ()
    assert read(queries.live_attempts, [story.original]) == (attempt,)
    assert read(queries.live_attempts, []) == ()
    assert read(queries.newest_attempts, [story.original]) == {story.original: attempt}
    assert read(queries.find_attempt, story.original, 2) is None
    speeds = read(queries.observed_speeds)
    assert speeds.keys() == {ANNA}
    assert read(queries.observed_speeds, [ANNA]) == speeds
    assert read(queries.observed_speeds, [BERT]) == {}
    assert read(queries.ran_out_of_memory) == {}
    release = Release(
        fencing=1, reason="out_of_memory", detail="", checkpoint=None, checkpoint_step=0
    )
    write(
        queries.release_lease, story.original, release, worker=ANNA, max_attempts=3, now=story.now
    )
    assert read(queries.ran_out_of_memory, [story.original]) == {story.original: {ANNA: 1}}


def test_checkpoints_tell_what_is_wanted_arrives_and_is_held(story, read, write, make):
    held = story.start(ANNA, story.original)
    story.beat(held, 5, checkpoint=True)
    arriving = read(queries.arriving_checkpoints)
    assert arriving == {story.original: (5, story.now)}
    assert read(queries.arriving_checkpoints, []) == {}
    (row,) = read(queries.announced_checkpoints)
    assert read(queries.find_checkpoint, row.checkpoint_id) == row
    blob = make.blob("file")
    write(queries.want_blobs, row.checkpoint_id, [blob, blob], 1.0)
    assert read(queries.wanted_from, ANNA) == (blob,)
    assert read(queries.may_upload, blob.digest, worker=ANNA) == blob
    assert read(queries.may_upload, blob.digest, worker=BERT) is None
    story.collect(ANNA, step=5)
    assert read(queries.wanted_from, ANNA) == ()
    assert read(queries.durable_step, story.original) == 5
    assert read(queries.durable_steps) == read(queries.durable_steps, [story.original])
    assert read(queries.held_manifests, ANNA) == (row.manifest.digest,)
    files = {file.blob.digest for file in make.manifest(story.spec, ANNA, step=5).files}
    assert read(queries.unneeded, [*files, "ab" * 32]) == ("ab" * 32,)
    story.beat(held, 7, checkpoint=True)
    write(queries.give_up_training, story.now + 3600.0)
    assert read(queries.announced_checkpoints) == []


def test_time_is_forgiven_and_runs_out(story, read, write):
    held = story.start(ANNA, story.original)
    story.submit(held)
    assert read(queries.count_uncollected, ANNA) == 1
    expires_at = story.row(story.original).standing.expires_at
    assert write(queries.extend_leases, 5.0) == 1
    assert story.row(story.original).standing.expires_at == expires_at + 5.0
    write(queries.beat_role, "api", 100.0)
    assert write(queries.forgive_downtime, now=105.0, tolerance_seconds=10.0) == 0.0
    assert write(queries.forgive_downtime, now=150.0, tolerance_seconds=10.0) == 50.0
    write(queries.keep_submissions, ANNA, now=200.0, heartbeat_seconds=HEARTBEAT)
    kept_until = 200.0 + SUBMISSION_INTERVALS * HEARTBEAT
    assert story.row(story.original).standing.expires_at == kept_until
    (gone,) = write(queries.expire_leases, 1e6)
    assert (gone.assignment, gone.worker) == (story.original, ANNA)
    assert read(queries.count_uncollected, ANNA) == 0


def test_a_banned_worker_loses_its_lease_and_failed_work_is_opened_again(story, read, write):
    story.start(ANNA, story.original)
    marked = write(queries.treat_worker, ANNA, "ban", reason="", now=story.now)
    assert marked.banned
    assert story.row(story.original).state == "open"
    for verb, state in (("fail", "failed"), ("retry", "open"), ("cancel", "cancelled")):
        write(queries.settle_assignment, story.original, verb, reason="", now=story.now)
        assert story.row(story.original).state == state
    assert read(queries.count_by_state, kind="seed") == {"cancelled": 1}
    assert read(queries.count_by_state, kind="expert") == {}


def test_the_views_are_made_from_the_same_rows(story, read, write, make):
    backup_of = story.start(ANNA, story.original)
    backup = story.back_up()
    ids = sorted([story.original, backup])
    views = read(queries.assignment_views, now=story.now)
    assert [view.assignment for view in views] == ids
    assert {view.backup_of for view in views} == {None, story.original}
    after = read(queries.assignment_views, now=story.now, after=ids[0], limit=1, state=None)
    assert [view.assignment for view in after] == ids[1:]
    assert [row.assignment for row in read(queries.some_assignments)] == ids
    assert len(read(queries.these_assignments, ids)) == 2
    (twin,) = read(queries.live_twins, story.row(story.original))
    assert twin.assignment == backup
    timing = {"now": 2.0, "heartbeat_seconds": HEARTBEAT}
    assert read(queries.count_workers, **timing) == {"idle": 1, "working": 1}
    states = {view.worker: view.state for view in read(queries.worker_views, **timing)}
    assert states == {ANNA: "working", BERT: "idle"}
    late = read(queries.count_workers, now=500.0, heartbeat_seconds=HEARTBEAT)
    assert late == {"offline": 2}
    story.hand_in(backup_of)
    assert read(queries.accepted_specs) == {story.spec.digest}
    assert read(queries.accepted_of, "0" * 64) is None
    for split in ("dev", "gate"):
        write(queries.add_shard, make.shard("python", split), now=story.now)
        write(
            queries.record_evaluation,
            spec_digest=story.spec.digest,
            shard_digest=make.shard("python", split).blob.digest,
            mean_log_likelihood=-2.0,
            perplexity=7.5,
            bits_per_byte=1.0,
            now=story.now,
        )
    assert len(read(queries.all_evaluations)) == 2
    (view,) = read(queries.perplexity_views, now=story.now)
    assert (view.domain, view.perplexity) == ("python", 7.5)
    (domain,) = read(queries.domain_views)
    assert domain.difficulty is None
    (domain,) = read(queries.all_domains)
    assert set(domain.shards) == {"train", "dev", "gate"}


def test_the_newest_result_table_is_shown_and_an_equal_one_not_kept_twice(story, read, write):
    def table(perplexity: float) -> ResultTable:
        row = TableRow(
            domain="python", perplexity={"seed": perplexity}, bits_per_byte={"seed": 1.0}
        )
        return ResultTable(columns=("seed",), rows=(row,))

    assert read(queries.results_recorded_at) is None
    before = read(queries.last_number)
    for number, perplexity in enumerate((9.0, 8.0, 8.0)):
        write(queries.record_results, table(perplexity), float(number))
    assert read(queries.newest_results) == table(8.0)
    assert read(queries.results_recorded_at) == 1.0
    assert read(queries.last_number) == before + 2
