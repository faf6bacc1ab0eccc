"""Runs of one FFN width whose experts are adapters of several ranks: run file, plan, outlook."""

import pytest
from plans import CLASSES, SCHEMES, TRAINED, plan_of, prepared_for, run_of
from pydantic import ValidationError

from coordinator.names import checkpoint_name
from coordinator.planning.errors import PlanError
from coordinator.planning.measured import Measured
from coordinator.planning.outlook import outlook
from coordinator.planning.recipes import seed_specs
from coordinator.pretrained.specs import pretrained_seed_spec
from protocol.specs import PROJECTIONS, Lora
from shared.sizing import train_flops

RECIPE = {
    "warmup_steps": 5,
    "peak_learning_rate": 1e-3,
    "final_learning_rate": 1e-4,
    "micro_batch": 2,
    "sequence_length": 32,
}
STEPS = {"easy": 300, "moderate": 400, "difficult": 500}
PLAN = {"schemes": SCHEMES, "steps": STEPS, "probe_steps": [100, 200]}


def ranked(plan=PLAN, **sections):
    values = {
        "widths": {"M": 96},
        "ranks": {"S": 2, "M": 4, "L": 6},
        "recipe": {**RECIPE, "schedule_steps": 600, "trains": "lora"},
        "dense": {"learning_rates": [1e-3]},
    }
    return run_of(plan, **{**values, **sections})


def complete(run):
    losses = {}
    while True:
        plan = plan_of(run, measured=Measured(losses, {}))
        if plan.is_complete:
            return plan
        losses |= dict.fromkeys(plan.wants, 1.0)


def test_ranks_follow_the_classes_where_models_differ_and_are_m_where_they_do_not():
    run = ranked()
    plan = complete(run)
    (seed,) = set(seed_specs(run, prepared_for(run)).values())
    assert (seed.nested_widths, seed.lora, seed.trains) == ((), None, "all")
    for scheme, experts in plan.schemes.items():
        differ = scheme in ("MHe-IHo", "MHe-IHe")
        sizes = {"easy": 2, "moderate": 4, "difficult": 6}
        for domain, spec in experts.items():
            rank = sizes[CLASSES[domain]] if differ else 4
            assert spec.lora == Lora(rank=rank, alpha=4.0, projections=PROJECTIONS)
            assert (spec.parent, spec.shape, spec.trains) == (seed.digest, seed.shape, "lora")
            assert checkpoint_name(spec).startswith(f"{domain}-rank{rank}-")
    assert plan.dense.lora == Lora(rank=4, alpha=4.0)
    assert [row.flops_ratio for row in plan.budgets] == pytest.approx([1.0] * 5, abs=0.005)
    assert plan.budgets[0].flops == sum(map(train_flops, plan.schemes["MHo-IHo"].values()))


def test_alpha_is_one_for_all_ranks_and_projections_stand_in_order():
    ranks = {"S": 1, "M": 2, "L": 3, "alpha": 16, "projections": ["v_proj", "q_proj"]}
    plan = complete(ranked(ranks=ranks))
    loras = {spec.lora for spec in plan.schemes["MHe-IHo"].values()}
    assert {(lora.rank, lora.alpha, lora.scale) for lora in loras} == {
        (1, 16.0, 16.0),
        (2, 16.0, 8.0),
        (3, 16.0, 16 / 3),
    }
    assert {lora.projections for lora in loras} == {("q_proj", "v_proj")}


def test_a_pretrained_seed_of_one_width_is_the_model_as_it_is():
    seed = {"kind": "pretrained", "pretrained": {"path": "llama"}}
    run = ranked(seed=seed, tokenizer={})
    prepared = prepared_for(run).model_copy(update={"origin": "0" * 64})
    spec = pretrained_seed_spec(run, prepared)
    assert (spec.shape.ffn_width, spec.nested_widths) == (96, ())


def test_the_outlook_tells_ranks_apart():
    rows = outlook(ranked()).rows
    ranks = {row.lora_rank for row in rows if row.kind == "expert"}
    assert ranks == {2, 4, 6}
    assert {row.lora_rank for row in rows if row.kind == "seed"} == {None}
    assert {row.ffn_width for row in rows} == {96}


def test_ranks_that_do_not_balance_are_refused_with_the_numbers():
    plan = {"schemes": ["MHo-IHo", "MHe-IHo"]}
    with pytest.raises(PlanError, match=r"MHe-IHo: .* flops \(1\.1622\)"):
        plan_of(ranked(plan, ranks={"S": 2, "M": 4, "L": 16}))


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"ranks": None}, "recipe.trains: 'lora' without .ranks.: expected 'lora' exactly"),
        (
            {"recipe": {**RECIPE, "schedule_steps": 600, "trains": "ffn"}},
            "recipe.trains: 'ffn' with .ranks. S 2, M 4, L 6",
        ),
        (
            {"widths": {"S": 72, "M": 96, "L": 120}},
            "widths: S 72, M 96, L 120 with ranks S 2, M 4, L 6: expected M alone",
        ),
        ({"widths": {"S": 72, "M": 96}}, "widths: S 72, M 96 with ranks .*: expected M alone"),
        ({"ranks": {"S": 4, "M": 4, "L": 6}}, "ranks: S 4, M 4, L 6: expected S below M below L"),
        (
            {"ranks": {"S": 2, "M": 4, "L": 17}},
            r"ranks.L: 17: expected at most 16, .*hidden size 16, keys and values 16, FFN 96",
        ),
        (
            {"ranks": {"S": 2, "M": 4, "L": 6, "projections": ["q_proj", "q_proj"]}},
            "ranks.projections: .*expected each once",
        ),
        (
            {"seed": {"kind": "per-size", "recipe": {**RECIPE, "num_steps": 800}}},
            "seed.kind: 'per-size' with ranks .* one width, 96",
        ),
        ({"plan": {**PLAN, "homogeneous_steps": 400, "unit": "ffn_steps"}}, "plan.unit: 'ffn_st"),
    ],
)
def test_ranks_that_contradict_the_run_file_are_refused_with_the_numbers(sections, words):
    with pytest.raises(ValidationError, match=words):
        ranked(**sections)


def test_one_width_without_ranks_is_refused():
    with pytest.raises(ValidationError, match="widths: M 96: expected S, M and L, or M alone"):
        run_of({"schemes": ["MHo-IHo"]}, widths={"M": 96}, domains=TRAINED)
