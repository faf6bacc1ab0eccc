"""What a plan of several rounds names: lineages, every scheme's experts, the dense baseline."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import CLASSES, SCHEMES, TRAINED, lineages_of, plan_of, prepared_for, run_of
from pydantic import ValidationError

from coordinator.planning.difficulty import classify
from coordinator.planning.errors import PlanError
from coordinator.planning.measured import Measured
from coordinator.planning.recipes import seed_specs
from coordinator.sections import Thresholds
from shared.sizing import train_flops

STATIC = SCHEMES[:-1]
ORDER = {
    "easy": ("cooking", "drama"),
    "moderate": ("geography", "law"),
    "difficult": ("physics", "python"),
}


def alike(_):
    return 0.1


def losses_for(plan, slope=alike):
    """Dev losses of what the plan wants: more steps, less loss, by the domain's own slope."""
    specs = {spec.digest: spec for spec, _ in plan.assignments()}
    return {
        (digest, domain): 5 - slope(domain) * specs[digest].train.num_steps / 100
        for digest, domain in plan.wants
    }


def complete(run, *, slope=alike):
    losses = {}
    for _ in range(10):
        plan = plan_of(run, measured=Measured(losses, {}))
        if plan.is_complete:
            return plan
        assert losses.keys().isdisjoint(plan.wants)
        losses |= losses_for(plan, slope)
    raise AssertionError("the plan never becomes complete")


def test_an_experts_parent_is_that_of_its_class_a_round_before():
    run = run_of(lineages_of())
    plan = complete(run)
    seeds = seed_specs(run, prepared_for(run))
    for scheme in SCHEMES:
        experts = plan.schemes[scheme]
        for first, second in ORDER.values():
            assert experts[first].parent == seeds["M"].digest
            assert experts[second].parent == experts[first].digest
        assert plan.members[scheme] == tuple(
            experts[domains[-1]].digest for domains in ORDER.values()
        )
    assert plan.rounds == {
        **{domains[0]: 1 for domains in ORDER.values()},
        **{domains[1]: 2 for domains in ORDER.values()},
    }


def test_every_scheme_has_the_papers_widths_and_steps():
    plan = complete(run_of(lineages_of()))
    table = {
        scheme: [
            (plan.schemes[scheme][one].shape.ffn_width, plan.schemes[scheme][one].train.num_steps)
            for one in ("cooking", "geography", "physics")
        ]
        for scheme in STATIC
    }
    assert table == {
        "MHo-IHo": [(96, 400), (96, 400), (96, 400)],
        "MHo-IHe": [(96, 300), (96, 400), (96, 500)],
        "MHe-IHo": [(72, 400), (96, 400), (120, 400)],
        "MHe-IHe": [(72, 295), (96, 394), (120, 491)],
    }
    ratios = {row.scheme: row.flops_ratio for row in plan.budgets}
    assert ratios == pytest.approx(dict.fromkeys(SCHEMES, 1.0), abs=0.005)


def test_in_the_papers_unit_both_heterogeneous_means_three_four_five_squared():
    plan = complete(run_of(lineages_of(["MHo-IHo", "MHe-IHe"], unit="ffn_steps")))
    steps = [
        plan.schemes["MHe-IHe"][one].train.num_steps for one in ("cooking", "geography", "physics")
    ]
    assert steps == [288, 384, 480]
    assert plan.budgets[1].ffn_steps == plan.budgets[0].ffn_steps == 2 * 3 * 96 * 400


def test_the_moderate_lineage_is_shared_where_width_and_steps_are():
    plan = complete(run_of(lineages_of(["MHo-IHo", "MHo-IHe", "MHe-IHo"])))
    for domain in ("geography", "law"):
        assert len({experts[domain].digest for experts in plan.schemes.values()}) == 1
    assert len(plan.assignments()) == 2 * (3 + 2 + 2)


def test_probes_are_the_beginning_of_the_experts_training():
    plan = complete(run_of(lineages_of()))
    assert len(plan.probes["adaptive"]) == 2 * len(TRAINED)
    curves = {spec.curve for spec in plan.schemes["adaptive"].values()}
    assert {spec.curve for spec in plan.probes["adaptive"]} == curves
    probed = plan.budgets[-1]
    assert probed.scheme == "adaptive"
    assert probed.probe_flops == pytest.approx(probed.flops * (200 + 300) / 400)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.001, 1), min_size=6, max_size=6))
def test_adaptive_spends_the_same_and_most_where_the_slope_is_steepest(slopes):
    by_domain = dict(zip(TRAINED, slopes, strict=True))
    plan = complete(run_of(lineages_of()), slope=by_domain.__getitem__)
    steps = {name: spec.train.num_steps for name, spec in plan.schemes["adaptive"].items()}
    for number in (1, 2):
        domains = [domain for domain, one in plan.rounds.items() if one == number]
        assert sum(steps[domain] for domain in domains) == 3 * 400
        ranked = sorted(domains, key=by_domain.__getitem__)
        # One step more or less is what rounding may do.
        assert all(steps[a] <= steps[b] + 1 for a, b in itertools.pairwise(ranked))
        assert all(300 <= steps[domain] <= 600 for domain in domains)


def test_the_dense_baseline_costs_what_a_scheme_does_at_the_rate_that_did_best():
    dense = {"learning_rates": [1e-3, 2e-3, 4e-3], "trial_steps": 50}
    run = run_of(lineages_of(["MHo-IHo"]), dense=dense)
    first = plan_of(run)
    assert [spec.train.num_steps for spec in first.trials] == [50, 50, 50]
    assert first.dense is None
    best = first.trials[1]
    losses = {want: 4.0 - (want[0] == best.digest) for want in first.wants}
    assert len(losses) == 3 * len(TRAINED)
    plan = plan_of(run, measured=Measured(losses, {}))
    assert plan.dense is not None
    assert plan.dense.kind == "dense"
    assert plan.dense.train.peak_learning_rate == 2e-3
    assert plan.dense.train.final_learning_rate == pytest.approx(2e-4)
    assert plan.dense.train.num_steps == 6 * 400
    assert plan.dense.train.schedule_steps == 6 * 600
    assert plan.dense.curve == best.curve
    experts = sum(train_flops(spec) for spec in plan.schemes["MHo-IHo"].values())
    assert train_flops(plan.dense) == pytest.approx(experts, rel=1e-3)
    assert plan.dense.train_shard == prepared_for(run).shard("mixed", "train").blob.digest


def test_keep_all_trains_every_domain_from_the_seed_and_keeps_every_expert():
    run = run_of({"schemes": ["MHo-IHo"], "rounds": 2})
    plan = plan_of(run)
    seed = seed_specs(run, prepared_for(run))["M"]
    assert {spec.parent for spec in plan.schemes["MHo-IHo"].values()} == {seed.digest}
    assert len(plan.members["MHo-IHo"]) == len(TRAINED)


def test_a_later_round_branches_from_the_average_that_was_measured():
    run = run_of({"schemes": ["MHo-IHo"], "rounds": 2, "branch": "average"})
    first = plan_of(run)
    early = [domain for domain, number in first.rounds.items() if number == 1]
    assert set(first.schemes["MHo-IHo"]) == set(early)
    members = tuple(first.schemes["MHo-IHo"][domain].digest for domain in sorted(early))
    late = [domain for domain, number in first.rounds.items() if number == 2]
    assert set(first.wants_posteriors) == {(members, domain) for domain in late}
    weights = dict.fromkeys(first.wants_posteriors, (0.7, 0.3, 0.0))
    plan = plan_of(run, measured=Measured({}, weights))
    assert plan.is_complete
    for domain in late:
        average = next(spec for spec in plan.averages if spec.domain == domain)
        assert plan.schemes["MHo-IHo"][domain].parent == average.digest
        assert {one.spec: one.share for one in average.ingredients} == dict(
            zip(members[:2], (0.7, 0.3), strict=True)
        )


def average_of(schemes, pins, **more):
    """A run of three rounds that branch from averages, with pins by domain."""
    text = {"sources": [{"path": "a", "document": "file"}]}
    plan = {"schemes": schemes, "rounds": 3, "branch": "average", **more}
    return run_of(plan) | domains_of({name: {**text, **pins.get(name, {})} for name in TRAINED})


LATE = {"physics": {"round": 2}, "python": {"round": 3}}
"""Both difficult domains, which get the greatest width."""


def test_averages_too_narrow_for_pinned_classes_are_refused_with_the_run_file():
    pins = {name: {"difficulty": CLASSES[name], **LATE.get(name, {})} for name in TRAINED}
    words = r"plan.branch: 'average'.*FFN width of 120.*pinned to round 2.*have 96 at most"
    with pytest.raises(ValidationError, match=words):
        average_of(["MHe-IHo"], pins)
    average_of(["MHo-IHo"], pins)
    average_of(["MHe-IHo"], {**pins, "python": {"difficulty": "difficult"}})


def test_averages_too_narrow_for_measured_classes_are_refused_before_anything_is_trained():
    run = average_of(["MHe-IHo"], LATE)
    with pytest.raises(PlanError, match=r"MHe-IHo.*width of 120 is in round 2.*have 96 at most"):
        plan_of(run)
    easy = CLASSES | {"physics": "easy", "cooking": "difficult"}
    assert set(plan_of(run, classes=easy).schemes["MHe-IHo"]) == {"cooking", "drama", "geography"}


def test_an_average_is_wide_enough_even_where_the_wide_experts_weigh_nothing():
    run = run_of({"schemes": ["MHe-IHo"], "rounds": 2, "branch": "average"})
    first = plan_of(run)
    wide = first.schemes["MHe-IHo"]["physics"].digest
    weights = {
        (members, domain): tuple(0.0 if one == wide else 0.5 for one in members)
        for members, domain in first.wants_posteriors
    }
    plan = plan_of(run, measured=Measured({}, weights))
    assert plan.is_complete
    averages = {spec.domain: spec for spec in plan.averages}
    assert averages["python"].shape.ffn_width == 120
    assert {one.spec: one.share for one in averages["python"].ingredients}[wide] == 1e-6
    assert averages["law"].shape.ffn_width == 96


def test_a_later_first_round_branches_from_the_seed_as_there_is_no_average_yet():
    run = average_of(["MHo-IHo"], {name: {"round": 2} for name in TRAINED})
    plan = plan_of(run)
    seed = seed_specs(run, prepared_for(run))["M"]
    assert {spec.parent for spec in plan.schemes["MHo-IHo"].values()} == {seed.digest}


def test_rehearsal_gives_later_rounds_a_blend_with_the_lineages_earlier_text():
    run = run_of(lineages_of(["MHo-IHo"], rehearsal=0.25))
    prepared, plan = prepared_for(run), plan_of(run)
    for first, second in ORDER.values():
        experts = plan.schemes["MHo-IHo"]
        assert experts[first].train_shard == prepared.shard(first, "train").blob.digest
        blend = prepared.shard(f"{second}.rehearsed", "train")
        assert experts[second].train_shard == blend.blob.digest
        assert experts[second].domain == second


def test_pins_decide_round_and_class_and_the_others_fill_up():
    perplexity = dict(zip(TRAINED, (1.5, 2.5, 3.5, 4.5, 5.5, 6.5), strict=True))
    assert classify(perplexity, {"cooking": "difficult"}, per_class=2) == {
        "cooking": "difficult",
        "drama": "easy",
        "geography": "easy",
        "law": "moderate",
        "physics": "moderate",
        "python": "difficult",
    }
    text = {"sources": [{"path": "a", "document": "file"}]}
    domains = dict.fromkeys(TRAINED, text) | {"drama": {**text, "round": 1}}
    plan = plan_of(run_of(lineages_of(["MHo-IHo"]), domains=TRAINED) | domains_of(domains))
    assert plan.rounds["drama"] == 1
    assert plan.rounds["cooking"] == 2


class domains_of:  # noqa: N801 - reads as a word of the run file
    """`run | domains_of(tables)` is the run file with these domains."""

    def __init__(self, tables):
        self._tables = tables

    def __ror__(self, run):
        values = run.model_dump(mode="json", by_alias=True, exclude_unset=True)
        return type(run).model_validate({**values, "domains": self._tables})


@given(st.dictionaries(st.sampled_from(TRAINED), st.floats(1, 1e6), min_size=6), st.data())
def test_thresholds_part_the_classes(perplexity, data):
    low, high = sorted(data.draw(st.tuples(st.floats(1, 1e6), st.floats(1, 1e6))))
    thresholds = Thresholds(moderate_from=low, difficult_from=high)
    for domain, difficulty in classify(perplexity, {}, thresholds=thresholds).items():
        value = perplexity[domain]
        assert (difficulty == "easy") == (value < low)
        assert (difficulty == "difficult") == (value >= max(low, high))


def test_classes_that_do_not_fill_the_rounds_are_refused_with_the_numbers():
    perplexity = dict.fromkeys(TRAINED, 9.0)
    thresholds = Thresholds(moderate_from=10.0, difficult_from=20.0)
    with pytest.raises(PlanError, match=r"6 easy, 0 moderate, 0 difficult.*2 of each"):
        classify(perplexity, {}, thresholds=thresholds, per_class=2)


@pytest.mark.parametrize(
    ("plan", "sections", "words"),
    [
        (lineages_of(rounds=3), {}, r"rounds: 3.*6 trained domains: expected 9"),
        ({"schemes": ["adaptive"]}, {}, r"probe_steps None.*expected two numbers"),
        ({**lineages_of(["adaptive"]), "probe_steps": [300, 200]}, {}, r"expected ascending"),
        ({"schemes": ["MHe-IHe"]}, {}, r"steps None.*MHo-IHe or MHe-IHe"),
        ({"schemes": ["MHo-IHo"], "rehearsal": 0.2}, {}, r"rehearsal: 0.2.*lineages"),
        ({"schemes": ["MHo-IHo"], "branch": "average"}, {}, r"branch: 'average'.*keep-all"),
        (lineages_of(["MHo-IHo"]), {"dense": {"learning_rates": [1e-3, 2e-3]}}, r"trial_steps"),
        (
            lineages_of(["MHo-IHo"]),
            {"dense": {"learning_rates": [1e-3, 1e-3], "trial_steps": 9}},
            r"each once",
        ),
        (
            {"schemes": ["MHo-IHo"], "classes": {"moderate_from": 9.0, "difficult_from": 2.0}},
            {},
            r"moderate_from 9.0 is more than",
        ),
    ],
)
def test_contradictions_of_a_plan_are_refused_with_the_numbers(plan, sections, words):
    with pytest.raises(ValidationError, match=words):
        run_of(plan, **sections)


def test_a_scheme_without_balanced_steps_is_refused_with_the_numbers():
    plan = lineages_of(["MHo-IHo", "MHe-IHe"])
    plan |= {"homogeneous_steps": 5, "steps": {"easy": 3, "moderate": 4, "difficult": 5}}
    with pytest.raises(PlanError, match=r"MHe-IHe: no steps in the proportions \[3, 4, 5\]"):
        plan_of(run_of(plan))


def test_a_trial_longer_than_the_baseline_is_refused():
    dense = {"learning_rates": [1e-3, 2e-3], "trial_steps": 9999}
    with pytest.raises(PlanError, match="trial_steps 9999: expected at most the 2400 steps"):
        plan_of(run_of(lineages_of(["MHo-IHo"]), dense=dense))


def test_the_current_round_is_the_first_with_an_expert_that_is_missing():
    plan = complete(run_of(lineages_of()))
    by_round = {1: set(), 2: set()}
    for experts in plan.schemes.values():
        for domain, spec in experts.items():
            by_round[plan.rounds[domain]].add(spec.digest)
    assert plan.current_round(set()) == 1
    assert plan.current_round(set(sorted(by_round[1])[1:]) | by_round[2]) == 1
    assert plan.current_round(by_round[1]) == 2
    assert plan.current_round(by_round[1] | by_round[2]) == 2
    assert plan_of(run_of(lineages_of())).current_round(by_round[1] - {"x"}) == 1


def test_no_expert_is_planned_for_a_held_out_domain():
    plan = complete(run_of(lineages_of()))
    trained = {spec.domain for spec, _ in plan.assignments()}
    assert trained == set(CLASSES)


def test_scaled_steps_that_end_before_the_warmup_are_refused_with_the_numbers():
    recipe = {
        "warmup_steps": 300,
        "peak_learning_rate": 1e-3,
        "final_learning_rate": 1e-4,
        "micro_batch": 2,
        "sequence_length": 32,
        "schedule": "annealed",
    }
    run = run_of(lineages_of(["MHo-IHo", "MHe-IHe"]), recipe=recipe)
    with pytest.raises(PlanError, match=r"MHe-IHe: steps .*'easy': 295.*warmup_steps 300"):
        plan_of(run)
