"""What scoring costs: which passes through models it makes, and how many files it opens."""

import math
import os

import pytest

from coordinator.ledger import queries
from coordinator.scoring.lineup import Lineup, SchemeLineup
from coordinator.sections import Evaluation
from tests.integration.scorer.bench import keep_all, lineages


def test_scoring_a_second_time_passes_through_no_model(bench):
    bench.run = bench.run.model_copy(update={"evaluation": Evaluation(weight_averages=True)})
    bench.scoring = bench.new_scoring()
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    lineup = keep_all(bench, experts)
    results = bench.score(lineup)
    before = bench.entries()
    for digest in bench.accepted:
        path = bench.path(digest)
        path.unlink()
        path.write_bytes(b"gone")
    bench.scoring = bench.new_scoring()
    assert bench.score(lineup) == results
    assert bench.entries() == before


def test_one_more_expert_costs_only_its_own_passes(bench):
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    bench.score(keep_all(bench, experts))
    before = bench.entries()
    experts["python"] = bench.add("expert", "python", bench.seed)
    bench.score(keep_all(bench, experts))
    after = bench.entries()
    assert before.items() < after.items()
    new = after.keys() - before.keys()
    assert len(new) == 2 * 3, "dev and test of three domains"
    assert {name.split("-")[0] for name in new} == {bench.file(experts["python"])}


def limit_with(*, free):
    """The bound on numbers of open files below which `free` are not taken."""
    number = 0
    while free:
        try:
            os.fstat(number)
        except OSError:
            free -= 1
        number += 1
    return number


def test_few_files_are_open_at_a_time_however_much_is_scored(bench):
    resource = pytest.importorskip("resource")
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    members = tuple(bench.add("expert", "drama", bench.seed) for _ in range(14))
    lineup = Lineup(
        seed=bench.seed,
        dense=None,
        schemes={"MHo-IHo": SchemeLineup((*members, *experts.values()), experts)},
        rounds=dict.fromkeys(experts, 1),
    )
    while bench.scoring.score_ahead(lineup, bench.accepted):
        pass
    entries = len(bench.entries())
    assert entries == 17 * 2 * 3
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit_with(free=85), hard))
    try:
        results = bench.score(lineup)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(results.members["MHo-IHo"]) == 16


def test_schemes_share_the_passes_of_their_experts(bench):
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    results = bench.score(keep_all(bench, experts, ("MHo-IHo", "MHe-IHo")))
    assert len(bench.entries()) == 3 * 2 * 3, "seed and two experts on dev and test"
    for scores in results.domains:
        assert scores.columns["MHo-IHo"] == scores.columns["MHe-IHo"]
    verdicts = {
        one.verdict for one in results.comparisons if (one.a, one.b) == ("MHe-IHo", "MHo-IHo")
    }
    assert verdicts == {"tie"}


def test_what_is_measured_ahead_is_all_that_scoring_needs(bench):
    lineup, first, _ = lineages(bench)
    held_back = bench.accepted.pop(lineup.dense)
    while bench.scoring.score_ahead(lineup, bench.accepted):
        pass
    assert len([one for one in bench.entries() if one.startswith(bench.file(first))]) == 2
    bench.accepted[lineup.dense] = held_back
    while bench.scoring.score_ahead(lineup, bench.accepted):
        pass
    before = bench.entries()
    bench.score(lineup)
    assert bench.entries() == before


def test_dev_losses_are_means_in_nats_and_are_written_down(bench):
    expert = bench.add("expert", "cooking", bench.seed)
    wants = [(expert, "cooking"), (bench.seed, "drama"), (expert, "drama")]
    losses = bench.scoring.measure_dev(wants, bench.accepted)
    assert losses.keys() == set(wants)
    results = bench.score(keep_all(bench, {"cooking": expert}))
    facts = {one.spec: one for one in results.checkpoints}
    for (digest, domain), loss in losses.items():
        assert math.exp(loss) == pytest.approx(facts[digest].dev_perplexity[domain])
    with bench.tiny.ledger.begin() as connection:
        for row in bench.accepted.values():
            shard = bench.prepared.shard("general", "train").blob
            queries.add_assignment(connection, row.spec, shard=shard, schemes=(), now=4.0)
        bench.scoring.record_dev(connection, losses, now=5.0)
    evaluations = bench.tiny.snapshot().evaluations
    assert {-one.mean_log_likelihood for one in evaluations} == set(losses.values())
    perplexities = sorted(math.exp(one) for one in losses.values())
    assert sorted(one.perplexity for one in evaluations) == pytest.approx(perplexities)
