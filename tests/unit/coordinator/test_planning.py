"""Plans: terciles, equal budgets, shared specs, and refusals with the numbers."""

import plans
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.planning.difficulty import classify
from coordinator.planning.errors import PlanError
from coordinator.planning.recipes import rng_seed_of, seed_specs
from coordinator.runfile import load_run_file
from shared.sizing import train_flops

CLASSES = {"cooking": "easy", "drama": "difficult", "python": "moderate"}


def plan_of(run, classes=CLASSES):
    return plans.plan_of(run, classes)


STEPS = "homogeneous_steps = 8\nsteps = {easy = 6, moderate = 8, difficult = 10}"


def test_three_domains_get_one_class_each():
    assert classify({"a": 30.0, "b": 10.0, "c": 20.0}, {}) == {
        "a": "difficult",
        "b": "easy",
        "c": "moderate",
    }


def test_equal_perplexities_are_ordered_by_name():
    assert classify({"c": 5.0, "a": 5.0, "b": 5.0}, {}) == {
        "a": "easy",
        "b": "moderate",
        "c": "difficult",
    }


perplexities = st.dictionaries(st.text("abcdef", min_size=1), st.floats(1, 1e6), min_size=1)


@given(perplexities)
def test_classes_follow_perplexity_and_are_balanced(perplexity):
    classes = classify(perplexity, {})
    assert classes.keys() == perplexity.keys()
    order = ["easy", "moderate", "difficult"]
    ranked = sorted(perplexity, key=lambda domain: (perplexity[domain], domain))
    ranks = [order.index(classes[domain]) for domain in ranked]
    assert ranks == sorted(ranks)
    counts = [ranks.count(number) for number in range(3)]
    assert counts[0] == counts[2]
    assert abs(counts[1] - counts[0]) <= 1


@given(perplexities, st.data())
def test_a_pin_changes_its_own_domain_alone(perplexity, data):
    pinned = data.draw(st.sampled_from(sorted(perplexity)))
    classes = classify(perplexity, {pinned: "difficult"})
    assert classes == {**classify(perplexity, {}), pinned: "difficult"}


def test_pins_and_perplexities_that_make_no_sense_are_refused():
    with pytest.raises(PlanError, match=r"\['b'\].*\['a'\]"):
        classify({"a": 2.0}, {"b": "easy"})
    with pytest.raises(PlanError, match="a: seed perplexity nan"):
        classify({"a": float("nan")}, {})


def test_a_nested_seed_is_one_spec_with_the_smaller_widths_as_prefixes(write_run):
    run = load_run_file(write_run())
    seeds = seed_specs(run, plans.prepared_for(run, CLASSES))
    assert len({spec.digest for spec in seeds.values()}) == 1
    seed = seeds["M"]
    assert (seed.kind, seed.domain, seed.parent, seed.trains) == ("seed", "general", None, "all")
    assert (seed.shape.ffn_width, seed.nested_widths) == (32, (16, 24, 32))
    assert seed.train.num_steps == seed.train.schedule_steps == 8
    assert (
        seed.train_shard == plans.prepared_for(run, CLASSES).shard("general", "train").blob.digest
    )


def test_per_size_seeds_are_those_that_the_plan_uses(write_run):
    run = load_run_file(write_run(('"nested"', '"per-size"')))
    seeds = seed_specs(run, plans.prepared_for(run, CLASSES))
    assert {label: seed.shape.ffn_width for label, seed in seeds.items()} == {
        "S": 16,
        "M": 24,
        "L": 32,
    }
    assert all(seed.nested_widths == () for seed in seeds.values())
    experts = plan_of(run).schemes["MHe-IHo"]
    parents = {domain: spec.parent for domain, spec in experts.items()}
    assert parents == {
        "cooking": seeds["S"].digest,
        "drama": seeds["L"].digest,
        "python": seeds["M"].digest,
    }
    alike = load_run_file(write_run(('"nested"', '"per-size"'), (', "MHe-IHo"', "")))
    assert list(seed_specs(alike, plans.prepared_for(alike, CLASSES))) == ["M"]


def test_schemes_differ_as_their_names_say_and_share_the_moderate_expert(write_run):
    schemes = '["MHo-IHo", "MHo-IHe", "MHe-IHo"]'
    run = load_run_file(
        write_run(('["MHo-IHo", "MHe-IHo"]', schemes), ("homogeneous_steps = 8", STEPS))
    )
    plan = plan_of(run)
    table = {
        scheme: [(spec.shape.ffn_width, spec.train.num_steps) for spec in experts.values()]
        for scheme, experts in plan.schemes.items()
    }
    assert table == {
        "MHo-IHo": [(24, 8), (24, 8), (24, 8)],
        "MHo-IHe": [(24, 6), (24, 10), (24, 8)],
        "MHe-IHo": [(16, 8), (32, 8), (24, 8)],
    }
    assert len({experts["python"].digest for experts in plan.schemes.values()}) == 1
    assignments = plan.assignments()
    assert len(assignments) == 7
    served = {spec.digest: schemes for spec, schemes in assignments}
    assert served[plan.schemes["MHo-IHo"]["python"].digest] == ("MHo-IHo", "MHo-IHe", "MHe-IHo")
    seed = seed_specs(run, plans.prepared_for(run, CLASSES))["M"]
    for spec, _ in assignments:
        assert spec.parent == seed.digest
        assert spec.shape.ffn_width <= seed.shape.ffn_width
        assert spec.train.schedule_steps == 12
    for row in plan.budgets:
        assert row.ffn_steps == 3 * 24 * 8
        assert row.flops_ratio == pytest.approx(1, abs=1e-12)


def test_budgets_are_the_sums_over_the_experts(write_run):
    plan = plan_of(load_run_file(write_run()))
    for row in plan.budgets:
        experts = plan.schemes[row.scheme].values()
        assert row.flops == sum(train_flops(spec) for spec in experts)
        assert row.ffn_steps == sum(s.shape.ffn_width * s.train.num_steps for s in experts)


def test_an_annealed_schedule_ends_with_the_experts_steps(write_run):
    run = load_run_file(write_run(("schedule_steps = 12", 'schedule = "annealed"')))
    for spec, _ in plan_of(run).assignments():
        assert spec.train.schedule_steps == spec.train.num_steps == 8


def test_a_plan_out_of_balance_is_refused_with_the_numbers(write_run):
    classes = {"cooking": "easy", "drama": "easy", "python": "moderate"}
    with pytest.raises(PlanError) as caught:
        plan_of(load_run_file(write_run()), classes)
    message = str(caught.value)
    assert "differ by over 0.5% in flops" in message
    assert "MHo-IHo: " in message
    assert "576 ffn_steps (1.0000)" in message
    assert "448 ffn_steps (0.7778)" in message


@given(
    st.integers(8, 60),
    st.integers(8, 60),
    st.integers(8, 60),
    st.sampled_from(["flops", "ffn_steps"]),
)
def test_a_plan_is_made_exactly_when_the_binding_unit_is_balanced(small, medium, large, unit):
    small, medium, large = sorted((2 * small, 2 * medium + 1, 2 * large + 2))
    if not small < medium < large:
        return
    run = plans.run_of(
        {"schemes": ["MHo-IHo", "MHe-IHo"], "unit": unit},
        domains=CLASSES,
        widths={"S": small, "M": medium, "L": large},
    )
    ratio_steps = (small + medium + large) / (3 * medium)
    body = 4 * 16 * 16 + 320 * 16 + 16 * 32
    costs = [body + 3 * 16 * width for width in (small, medium, large)]
    ratio = ratio_steps if unit == "ffn_steps" else sum(costs) / (3 * costs[1])
    if abs(abs(ratio - 1) - 0.005) < 1e-9:
        return
    if abs(ratio - 1) < 0.005:
        assert len(plan_of(run).budgets) == 2
    else:
        with pytest.raises(PlanError):
            plan_of(run)


def test_a_missing_class_is_refused(write_run):
    with pytest.raises(PlanError, match=r"classes of \['cooking'\]"):
        plan_of(load_run_file(write_run()), {"cooking": "easy"})


def test_plans_and_digests_are_reproducible_and_follow_the_rng_seed(write_run):
    run = load_run_file(write_run())
    assert plan_of(run) == plan_of(run)
    other = load_run_file(write_run(("schedule_steps = 12", "schedule_steps = 12\nrng_seed = 1")))
    first, second = plan_of(run).assignments(), plan_of(other).assignments()
    assert {s.digest for s, _ in first}.isdisjoint(s.digest for s, _ in second)


def test_domains_have_different_rng_seeds_and_schemes_the_same():
    assert rng_seed_of(0, "drama") == rng_seed_of(0, "drama")
    seeds = {rng_seed_of(seed, name) for seed in (0, 1) for name in ("drama", "python")}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**32 for seed in seeds)
