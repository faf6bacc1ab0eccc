"""Real tiny checkpoints to results that the report reads."""

import json

import numpy as np

from coordinator.report.reading import read_results
from coordinator.scoring.outcome import WEIGHTS_BY_POSTERIOR
from coordinator.scoring.table import results_json
from coordinator.sections import Dense, Evaluation
from tests.integration.scorer.bench import keep_all, lineages


def test_a_run_of_lineages_gives_results_that_the_report_reads(bench, tmp_path):
    lineup, first, second = lineages(bench)
    results = bench.score(lineup)
    assert [one.role for one in results.domains] == ["trained", "trained", "held-out"]
    name = {one.spec: one.name for one in results.checkpoints}
    by_domain = {one.domain: one for one in results.domains}
    for domain, scores in by_domain.items():
        assert set(scores.columns) == {
            *("seed M", "dense", "dense+seed"),
            *("MHo-IHo", "MHe-IHo", "MHo-IHo+seed", "MHe-IHo+seed"),
        }
        assert (name[first] in scores.models) == (domain == "cooking")
    assert by_domain["cooking"].tied == ()
    assert [(one.expert, one.domain) for one in results.remembered if one.scheme == "MHo-IHo"] == [
        (name[first], "cooking"),
        (name[second], "cooking"),
        (name[second], "drama"),
    ]
    assert {one.where for one in results.comparisons} == {
        *("cooking", "drama", "python", "own", "held-out", "all")
    }
    facts = {one.spec: one for one in results.checkpoints}
    assert facts.keys() == bench.accepted.keys()
    assert facts[second].parent == name[first]
    assert (facts[second].round, facts[second].schemes) == (2, ("MHo-IHo",))
    assert facts[first].schemes == ("MHo-IHo", "MHe-IHo")
    assert set(facts[first].dev_perplexity) == {"cooking"}
    path = tmp_path / "results.json"
    path.write_bytes(results_json(results))
    assert read_results(path) == results
    assert json.loads(path.read_text())["table"]["columns"][:4] == [
        *("seed M", "dense", "best single", "oracle")
    ]


def test_what_is_traced_is_test_text_with_the_weights_of_its_members(bench):
    experts = {domain: bench.add("expert", domain, bench.seed) for domain in ("cooking", "drama")}
    results = bench.score(keep_all(bench, experts))
    assert [one.domain for one in results.traces] == ["cooking", "drama"]
    words = set((bench.folders.root / "cooking" / "0.txt").read_text().split())
    for trace in results.traces:
        assert trace.members == results.members["MHo-IHo"]
        assert np.allclose(np.sum(trace.weights, axis=0), 1, atol=1e-5)
        assert np.allclose(np.asarray(trace.weights)[:, 0], 0.5)
        assert len(trace.tokens) == len(trace.weights[0])
    assert set("".join(results.traces[0].tokens).split()[:-1]) <= words


def test_a_run_with_a_dense_baseline_and_a_held_out_domain_goes_to_its_results(tiny):
    domains = {
        **tiny.run.domains,
        "python": tiny.run.domains["python"].model_copy(update={"role": "held-out"}),
    }
    update = {
        "domains": domains,
        "dense": Dense(learning_rates=(1e-2,)),
        "evaluation": Evaluation(weight_averages=True),
        "plan": tiny.run.plan.model_copy(update={"schemes": ("MHo-IHo",)}),
    }
    tiny.run = tiny.run.model_copy(update=update)
    tiny.scorer = tiny.new_scorer()
    tiny.to_the_end()
    for row in tiny.rows("dense"):
        tiny.hand_in(row)
        tiny.settle()
    assert tiny.snapshot().phase == "finished"
    results = read_results(tiny.folders.state / "results.json")
    assert results.dense is not None
    assert {one.kind for one in results.checkpoints} == {"seed", "dense", "expert"}
    by_domain = {one.domain: one for one in results.domains}
    for domain in ("cooking", "drama"):
        columns = by_domain[domain].columns
        assert columns["MHo-IHo"].perplexity < columns["dense"].perplexity
        assert columns["dense"].perplexity < columns["seed M"].perplexity
        modes = by_domain[domain].schemes["MHo-IHo"].modes
        assert modes[WEIGHTS_BY_POSTERIOR].perplexity < columns["seed M"].perplexity
    verdicts = {(one.a, one.b, one.where): one.verdict for one in results.comparisons}
    assert verdicts["dense", "seed M", "own"] == "better"
    assert verdicts["dense", "seed M", "held-out"] == "worse"
    assert by_domain["python"].columns["MHo-IHo"].perplexity > 10
    assert by_domain["python"].columns["MHo-IHo+seed"].perplexity < 5, "the seed protects it"
    assert len(results.budgets) == 1
    table = tiny.snapshot().results
    assert [row.held_out for row in table.rows] == [False, False, True]
