"""Own data: the terms, who may offer what, who may hold the work, and what its expert must keep."""

from dataclasses import replace

import numpy as np
import plans
import pytest

from coordinator import lifecycle
from coordinator.api.fleet import Fleet
from coordinator.api.settings import ApiSettings
from coordinator.ledger import queries
from coordinator.ledger.queries import AssignmentRow, RunSnapshot
from coordinator.lifecycle import Assignment, Holder
from coordinator.owndata import MAX_DOMAINS_A_WORKER, Offered, refusal_of
from coordinator.planning.owned import own_data_terms, own_expert
from coordinator.planning.recipes import seed_specs
from coordinator.rounds import Classify, PlanSeeds, next_action
from coordinator.scheduling import Candidate, NoWork, Work
from coordinator.scheduling.requirements import find_obstacle
from coordinator.scoring.owned import marker_text
from coordinator.scoring.verification import (
    Accepted,
    Comparison,
    Inconclusive,
    Rejected,
    decide_harmless,
)
from protocol.assignments import AssignmentState
from protocol.errors import ErrorCode
from protocol.messages import Submission
from protocol.owndata import DomainOffer, OwnDataTerms, OwnShard, SelfReport

GARDENER, HELPER, OPERATOR = (f"12D3KooW{letter * 44}" for letter in "ABC")
RUN = plans.run_of({"schemes": ["MHo-IHo"]}, own_data={"steps": 100, "harm_percent": 5.0})
PREPARED = plans.prepared_for(RUN)
BEAT = 10.0


@pytest.fixture
def offer(make):
    def build(domain="quinces", tokens=50_000, text="text") -> DomainOffer:
        train, dev = (
            OwnShard(blob=make.blob(f"{domain} {text} {split}"), num_documents=9, num_tokens=count)
            for split, count in (("train", tokens), ("dev", 100))
        )
        return DomainOffer(domain=domain, train=train, dev=dev)

    return build


def terms_of(run=RUN) -> OwnDataTerms:
    terms = own_data_terms(run, PREPARED)
    assert terms is not None
    return terms


def test_the_terms_say_what_the_run_file_says_and_how_little_text_is_too_little():
    terms = terms_of()
    assert (terms.ffn_width, terms.num_steps, terms.harm_percent) == (96, 100, 5.0)
    # 100 steps of 2 x 32 tokens, four times over at most.
    assert terms.min_train_tokens == 1600
    assert {"general", "mixed", "cooking", "cooking.rehearsed", "dense"} <= set(terms.reserved)
    assert own_data_terms(plans.run_of({"schemes": ["MHo-IHo"]}), PREPARED) is None


def test_an_own_expert_follows_the_experts_recipe_on_text_that_nobody_has(offer):
    seeds = seed_specs(RUN, PREPARED)
    spec = own_expert(RUN, PREPARED, offer(), seeds)
    assert (spec.kind, spec.domain, spec.parent) == ("expert", "quinces", seeds["M"].digest)
    assert (spec.shape.ffn_width, spec.train.num_steps) == (96, 100)
    assert spec.train_shard == offer().train.blob.digest
    assert spec.train_shard not in {shard.blob.digest for shard in PREPARED.shards}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"steps": 601}, "own_data.steps: 601 is more than recipe.schedule_steps 600"),
        ({"steps": 2}, "own_data.steps: 2 is less than recipe.warmup_steps 5"),
        ({"steps": 100, "harm_percent": 0}, "greater than 0"),
        ({"steps": 100, "max_domains": 0}, "greater than or equal to 1"),
        ({"steps": 100, "allow": True}, "Extra inputs are not permitted"),
    ],
)
def test_a_run_file_with_terms_that_cannot_be_is_refused(section, words):
    with pytest.raises(ValueError, match=words):
        plans.run_of({"schemes": ["MHo-IHo"]}, own_data={"harm_percent": 5.0, **section})


def test_a_width_without_a_seed_is_refused():
    recipe = RUN.seed.recipe.model_dump()
    values = {"kind": "per-size", "recipe": recipe}
    own = {"steps": 100, "harm_percent": 5.0, "width": "L"}
    with pytest.raises(ValueError, match=r"own_data\.width: 'L': the plan trains no seed"):
        plans.run_of({"schemes": ["MHo-IHo"]}, seed=values, own_data=own)


def test_a_run_that_takes_none_says_so(offer):
    refusal = refusal_of(offer(), GARDENER, None, ())
    assert refusal is not None
    assert refusal.code is ErrorCode.FORBIDDEN
    assert "no [own_data]" in refusal.message


def test_a_name_is_given_once_and_repeating_an_offer_is_harmless(offer):
    before = (Offered(GARDENER, offer()),)
    assert refusal_of(offer(), GARDENER, terms_of(), before) is None
    for worker, again, words in (
        (HELPER, offer(), "another worker has this domain"),
        (GARDENER, offer(text="other"), "you offered it with other text before"),
        (HELPER, offer("cooking"), "the run has this name"),
        (HELPER, offer("general"), "the run has this name"),
    ):
        refusal = refusal_of(again, worker, terms_of(), before)
        assert refusal is not None
        assert refusal.code is ErrorCode.WRONG_STATE
        assert words in refusal.message


def test_too_many_domains_and_too_little_text_are_refused_with_the_numbers(offer):
    mine = [Offered(GARDENER, offer(f"d{number}")) for number in range(MAX_DOMAINS_A_WORKER)]
    refusal = refusal_of(offer(), GARDENER, terms_of(), mine)
    assert refusal is not None
    assert "you offered 4 domains already" in refusal.message
    assert refusal_of(offer(), HELPER, terms_of(), mine) is None
    others = [Offered(f"w{number}", offer(f"d{number}")) for number in range(16)]
    refusal = refusal_of(offer(), HELPER, terms_of(), others)
    assert refusal is not None
    assert "takes 16 own domains, and has them" in refusal.message
    banned = [replace(others[0], counts=False), *others[1:]]
    assert refusal_of(offer(), HELPER, terms_of(), banned) is None
    refusal = refusal_of(offer(tokens=1599), HELPER, terms_of(), ())
    assert refusal is not None
    assert "1599 train tokens, expected at least 1600 for 100 steps" in refusal.message


def work_of(**changes) -> Work:
    values = {
        "assignment": "a1",
        "words": "own",
        "flops": 1.0,
        "memory_bytes": dict.fromkeys(("cpu", "cuda", "mps"), 1),
        "disk_bytes": 1,
        "owner": GARDENER,
        "shard": "its text",
    }
    return Work(**{**values, **changes})


def test_only_the_owner_that_has_the_text_at_hand_meets_the_requirements(make):
    def obstacle(worker, *cached, **changes):
        candidate = Candidate(
            worker=worker,
            capability=make.capability(),
            speed=1.0,
            busy_until=0.0,
            cached=frozenset(cached),
        )
        return find_obstacle(work_of(**changes), candidate, now=0.0)

    assert obstacle(GARDENER, "its text") is None
    assert "own data of another worker" in obstacle(HELPER, "its text").words
    assert "join with --offer-domain" in obstacle(GARDENER).words
    assert obstacle(HELPER, owner=None) is None


def test_no_offer_of_own_data_is_made_to_anybody_else():
    owned = Assignment(assignment="a1", owner=GARDENER)
    refused = lifecycle.offer(owned, worker=HELPER, now=0.0, heartbeat_seconds=BEAT)
    assert isinstance(refused, lifecycle.Refused)
    assert refused.code is ErrorCode.FORBIDDEN
    given = lifecycle.offer(owned, worker=GARDENER, now=0.0, heartbeat_seconds=BEAT)
    assert isinstance(given, Assignment)
    assert given.owner == GARDENER


def comparison(percent, *, spread=0.02, num_documents=40) -> Comparison:
    """A candidate whose perplexity is so many percent above its parent's."""
    draw = np.random.default_rng(3)
    documents = np.repeat(np.arange(num_documents), 10)
    parent = -3 + draw.normal(0, 0.5, len(documents))
    change = -np.log1p(percent / 100) + draw.normal(0, spread, len(documents))
    return Comparison(
        candidate=(parent + change).astype(np.float32),
        baseline=parent.astype(np.float32),
        documents=documents,
        against="its parent",
        ffn_width=64,
    )


@pytest.mark.parametrize(
    ("percents", "expected"),
    [
        ({"cooking": -3.0, "drama": 0.0}, Accepted),
        ({"cooking": -30.0, "drama": 3.0}, Accepted),
        ({"cooking": -30.0, "drama": 9.0}, Rejected),
        ({"cooking": 5.0, "drama": 9.0}, Rejected),
        ({"cooking": -30.0, "drama": 5.0}, Inconclusive),
    ],
)
def test_every_domain_of_the_run_must_keep_within_the_bound(percents, expected):
    decision = decide_harmless(
        {domain: comparison(percent) for domain, percent in percents.items()},
        harm_percent=5.0,
        rng_seed=0,
    )
    assert isinstance(decision, expected), decision
    assert "5 %" in decision.reason
    assert "drama" not in decision.reason
    assert "drama" in decision.detail


def test_harm_is_judged_on_some_domain():
    with pytest.raises(ValueError, match="expected one for each domain"):
        decide_harmless({}, harm_percent=5.0, rng_seed=0)


@pytest.fixture
def run_ledger(ledger, clock, make):
    """A run that takes own data, two workers, and an accepted seed's spec."""
    with ledger.begin() as connection:
        queries.create_run(connection, run="small", coordinator=OPERATOR, now=clock())
        for worker in (GARDENER, HELPER):
            registration = queries.Registration(
                worker=worker,
                name="",
                software_version="0",
                capability=make.capability(),
                maddrs=(),
                token_digest=worker,
                token_expires_at=1e12,
                certificate_expires_at=1e12,
                allowed_at=0.0,
            )
            queries.register_worker(connection, registration, clock())
        queries.set_own_data_terms(connection, terms_of(), now=clock())
    return ledger


def test_the_terms_follow_the_run_file_and_the_tokenizer_is_readable_with_them(run_ledger, clock):
    digest = PREPARED.tokenizer.digest
    with run_ledger.begin() as connection:
        number = queries.last_number(connection)
        queries.set_own_data_terms(connection, terms_of(), now=clock())
        assert queries.last_number(connection) == number
        assert queries.own_data_terms(connection) == terms_of()
        assert queries.may_read(connection, digest, HELPER)
        queries.set_own_data_terms(connection, None, now=clock())
        assert queries.own_data_terms(connection) is None
        assert not queries.may_read(connection, digest, HELPER)


def planned(ledger, make, clock, offer) -> tuple[str, str]:
    """An own domain whose assignment is open: its id, and the spec's digest."""
    parent = make.spec()
    spec = make.spec(domain="quinces", parent=parent.digest, num_steps=100).model_copy(
        update={"train_shard": offer().train.blob.digest}
    )
    with ledger.begin() as connection:
        refusal = queries.offer_domain(connection, offer(), worker=GARDENER, now=clock())
        assert refusal is None
        (row,) = queries.all_own_domains(connection)
        return queries.plan_own_expert(connection, row, spec, now=clock()), spec.digest


def hand_in(ledger, make, clock, assignment, decision) -> None:
    """The gardener does the assignment, and `decision` is what becomes of it."""
    timing = {"now": clock(), "heartbeat_seconds": BEAT}
    with ledger.begin() as connection:
        row = queries.get_assignment(connection, assignment)
        terms = queries.OfferTerms(
            assignment=assignment, worker=GARDENER, free_memory_bytes=1, reason="own"
        )
        queries.offer_assignment(connection, terms, **timing)
        holder = Holder(worker=GARDENER, fencing=1)
        queries.acknowledge_lease(connection, assignment, holder, **timing)
        manifest = make.manifest(row.spec, GARDENER)
        submission = Submission(
            request_id="0" * 32,
            fencing=1,
            manifest=make.blob("manifest"),
            tokens_per_second=1.0,
            train_seconds=1.0,
            peak_memory_bytes=2**40,
        )
        queries.submit_expert(connection, assignment, submission, worker=GARDENER, **timing)
        (waiting,) = queries.announced_checkpoints(connection)
        queries.mark_durable(connection, waiting.checkpoint_id, manifest, clock())
        queries.record_verification(connection, assignment, 1, decision, "words", clock())


def test_an_accepted_own_expert_counts_in_no_claim(run_ledger, make, clock, offer):
    assignment, digest = planned(run_ledger, make, clock, offer)
    hand_in(run_ledger, make, clock, assignment, Accepted())
    with run_ledger.begin() as connection:
        assert queries.accepted_of(connection, digest).owner == GARDENER
        (receipt,) = queries.receipts_of(connection, GARDENER)
        assert (receipt.credit, receipt.num_steps) == (0.0, 100)
        assert queries.proven_workers(connection) == set()
        assert queries.memory_peaks(connection) == ()
        assert queries.count_by_state(connection) == {}
        report = SelfReport(perplexity_before=40.0, perplexity_after=12.0)
        told = {"now": clock()}
        assert queries.report_own_domain(
            connection, "quinces", report, worker=HELPER, **told
        ).code is (ErrorCode.NOT_FOUND)
        for _ in range(2):
            done = queries.report_own_domain(connection, "quinces", report, worker=GARDENER, **told)
            assert done is None
        (view,) = queries.own_domain_views(connection, now=clock())
        assert (view.state, view.perplexity_after) == ("accepted", 12.0)
        (expert,) = queries.expert_views(connection)
        assert expert.self_reported


@pytest.mark.parametrize("decision", [Rejected("harmful"), Inconclusive("unclear")])
def test_an_own_expert_that_is_not_accepted_is_at_its_end(run_ledger, make, clock, offer, decision):
    assignment, digest = planned(run_ledger, make, clock, offer)
    hand_in(run_ledger, make, clock, assignment, decision)
    with run_ledger.read() as connection:
        assert queries.get_assignment(connection, assignment).state == "cancelled"
        assert queries.accepted_of(connection, digest) is None
        (view,) = queries.own_domain_views(connection, now=clock())
        assert view.state == "refused"
        assert "words" in view.reason


def test_the_digest_of_an_own_shard_opens_nothing(run_ledger, make, clock, offer):
    planned(run_ledger, make, clock, offer)
    with run_ledger.read() as connection:
        for shard in (offer().train, offer().dev):
            for peer in (GARDENER, HELPER):
                assert not queries.may_read(connection, shard.blob.digest, peer)
            assert queries.may_upload(connection, shard.blob.digest) is None


def test_a_run_waits_for_no_expert_on_own_data(make):
    spec = make.spec(domain="quinces", parent=make.spec().digest)
    own = AssignmentRow(
        standing=Assignment(assignment="a1", owner=GARDENER, state=AssignmentState.FAILED),
        spec=spec,
        shard=make.blob("own"),
        schemes=(),
        reason="",
        created_at=0.0,
        changed_at=0.0,
    )
    seed = replace(
        own,
        standing=Assignment(assignment="a2", state=AssignmentState.ACCEPTED),
        spec=make.spec(),
    )

    def snapshot(*rows):
        return RunSnapshot("seeding", (), rows, (), None)

    assert isinstance(next_action(snapshot(own), None), PlanSeeds)
    assert isinstance(next_action(snapshot(own, seed), None), Classify)


@pytest.fixture
def fleet(run_ledger, clock, make, offer):
    """The scheduler's index of an api, with an open own domain whose seed is there."""
    parent = make.spec()
    with run_ledger.begin() as connection:
        made = {"kind": "pretrained", "origin": "0" * 64}
        train = parent.train.model_copy(update={"num_steps": 0})
        seed = parent.model_copy(update={**made, "train": train})
        coordinator = queries.get_run(connection).coordinator
        queries.add_made(
            connection,
            seed,
            manifest=make.manifest(seed, coordinator),
            manifest_ref=make.blob("manifest of the seed"),
            shard=make.blob("python train"),
            now=clock(),
        )
        queries.offer_domain(connection, offer(), worker=GARDENER, now=clock())
        (row,) = queries.all_own_domains(connection)
        spec = make.spec(domain="quinces", parent=seed.digest)
        spec = spec.model_copy(update={"train_shard": offer().train.blob.digest})
        assignment = queries.plan_own_expert(connection, row, spec, now=clock())
    settings = ApiSettings(
        run="small",
        heartbeat_seconds=BEAT,
        checkpoint_seconds=BEAT,
        enrolment="open",
        trust="all",
        url_secret=b"s" * 32,
        token_key=b"t" * 32,
    )
    return Fleet(settings), assignment


def asks(connection, worker, now, *cached):
    (row,) = queries.these_workers(connection, [worker])
    return replace(row, asked_at=now, cached=frozenset(cached))


def test_own_data_comes_first_for_its_worker_and_stands_in_nobodys_way(
    fleet, run_ledger, clock, make, offer
):
    index, assignment = fleet
    digest = offer().train.blob.digest
    with run_ledger.begin() as connection:
        index.follow(connection, clock())
        gardener = asks(connection, GARDENER, clock(), digest)
        assert index.choose(gardener, now=clock(), waits_since=None).assignment == assignment
        assert index.has_own_work(gardener, now=clock())
        for other in (asks(connection, GARDENER, clock()), asks(connection, HELPER, clock())):
            assert not index.has_own_work(other, now=clock())
            choice = index.choose(other, now=clock(), waits_since=None)
            assert choice == NoWork("no assignment is open now")
        assert index.expected_end(clock()) == clock()
        plain = make.spec(domain="python", num_steps=5)
        queries.add_assignment(
            connection, plain, shard=make.blob("python train"), schemes=("a",), now=clock()
        )
        index.follow(connection, clock())
        helper = asks(connection, HELPER, clock())
        assert index.choose(helper, now=clock(), waits_since=None).assignment != assignment
        terms = queries.OfferTerms(
            assignment=assignment, worker=GARDENER, free_memory_bytes=1, reason="own"
        )
        queries.offer_assignment(connection, terms, now=clock(), heartbeat_seconds=BEAT)
        index.follow(connection, clock())
        assert not index.has_own_work(gardener, now=clock())


def test_what_stands_still_on_own_data_is_backed_up_by_nobody(fleet, run_ledger, clock):
    index, assignment = fleet
    with run_ledger.begin() as connection:
        terms = queries.OfferTerms(
            assignment=assignment, worker=GARDENER, free_memory_bytes=1, reason="own"
        )
        queries.offer_assignment(connection, terms, now=clock(), heartbeat_seconds=BEAT)
        index.follow(connection, clock())
        later = clock() + 1e6
        helper = asks(connection, HELPER, later, "anything")
        assert isinstance(index.choose(helper, now=later, waits_since=0.0), NoWork)


def test_what_lies_beside_the_weights_says_what_nobody_could_verify():
    text = marker_text("quinces", GARDENER, harm_percent=5.0)
    for words in (f"worker {GARDENER}", "`quinces`", "self-reported", "5 % perplexity", "harmless"):
        assert words in text
    assert "the run's bound of then" in marker_text("quinces", GARDENER, harm_percent=None)
