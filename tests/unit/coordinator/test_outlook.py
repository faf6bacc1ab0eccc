"""What a run will cost, told from its run file; and the presets, which are such run files."""

import sys

import pytest
from plans import TRAINED, lineages_of, run_of

from coordinator.init import InitError, init_folder, presets
from coordinator.main import main
from coordinator.planning.errors import PlanError
from coordinator.planning.outlook import PEAK_FLOPS, UTILISATION, outlook
from coordinator.runfile import load_run_file


def test_rows_add_up_to_all_that_is_trained_and_hours_follow_from_it():
    expected = outlook(run_of(lineages_of()))
    total = sum(row.count * row.flops for row in expected.rows)
    assert total == pytest.approx(expected.flops)
    assert expected.hours["T4"] == pytest.approx(
        expected.flops / (PEAK_FLOPS["T4"] * UTILISATION) / 3600
    )
    assert expected.assumed
    assert [row.scheme for row in expected.budgets][-1] == "adaptive"
    # Lineages of two rounds: a nested seed, and an expert a class, width and steps.
    seeds = [row for row in expected.rows if row.kind == "seed"]
    assert [(row.ffn_width, row.num_steps, row.count) for row in seeds] == [(120, 800, 1)]


def test_what_the_search_for_steps_and_rates_costs_has_lines_of_its_own():
    dense = {"learning_rates": [1e-3, 2e-3, 4e-3], "trial_steps": 50}
    expected = outlook(run_of(lineages_of(), dense=dense))
    costs = {cost.purpose: (cost.num_trainings, cost.flops) for cost in expected.search}
    assert costs.keys() == {"probes of adaptive", "trials of the dense baseline"}
    (trials,) = (row for row in expected.rows if (row.kind, row.num_steps) == ("dense", 50))
    assert costs["trials of the dense baseline"] == (3, pytest.approx(3 * trials.flops))
    probes = [row for row in expected.budgets if row.scheme == "adaptive"]
    assert costs["probes of adaptive"] == (12, pytest.approx(probes[0].probe_flops))
    assert sum(flops for _, flops in costs.values()) < expected.flops
    assert outlook(run_of(lineages_of(["MHo-IHo"]))).search == ()


@pytest.mark.parametrize("line", ['experts = "keep-all"', "rehearsal = 0.25"])
def test_bench9_can_keep_all_experts_and_can_rehearse(line, tmp_path, capsys, monkeypatch):
    init_folder(tmp_path / "run", preset="bench9")
    path = tmp_path / "run" / "run.toml"
    field = line.split()[0]
    lines = [one for one in path.read_text("utf-8").splitlines() if not one.startswith(field)]
    lines.insert(lines.index("[plan]") + 1, line)
    path.write_text("\n".join(lines), "utf-8")
    run = load_run_file(path)
    assert (run.plan.experts, run.plan.rehearsal) in (("keep-all", 0.0), ("lineages", 0.25))
    ratios = [row.flops_ratio for row in outlook(run).budgets]
    assert ratios == pytest.approx([1.0] * len(run.plan.schemes), abs=0.005)
    monkeypatch.setattr(sys, "argv", ["hdee-coordinator", "plan", str(path), "--dry-run"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "probes of adaptive" in shown
    assert "trials of the dense baseline" in shown


def test_pinned_classes_are_not_made_up():
    pins = ["easy", "easy", "moderate", "moderate", "difficult", "difficult"]
    text = {"sources": [{"path": "a", "document": "file"}]}
    pinned = {name: {**text, "difficulty": pin} for name, pin in zip(TRAINED, pins, strict=True)}
    run = run_of(lineages_of(["MHo-IHo"]))
    values = run.model_dump(mode="json", by_alias=True, exclude_unset=True)
    assert not outlook(type(run).model_validate({**values, "domains": pinned})).assumed


def test_a_pretrained_seed_costs_no_training():
    seed = {"kind": "pretrained", "pretrained": {"path": "seed"}}
    run = run_of({"schemes": ["MHo-IHo"]}, seed=seed, tokenizer={})
    rows = {row.kind: row for row in outlook(run).rows}
    assert (rows["pretrained"].flops, rows["pretrained"].num_steps) == (0, 0)
    assert rows["expert"].flops > 0


def test_a_plan_that_cannot_be_is_refused_before_anything_is_fetched():
    plan = {**lineages_of(["MHo-IHo", "MHe-IHe"]), "homogeneous_steps": 5}
    plan["steps"] = {"easy": 3, "moderate": 4, "difficult": 5}
    with pytest.raises(PlanError, match="no steps in the proportions"):
        outlook(run_of(plan))


@pytest.mark.parametrize("preset", presets())
def test_every_preset_is_a_run_file_whose_schemes_balance(preset, tmp_path):
    init_folder(tmp_path / preset, preset=preset)
    run = load_run_file(tmp_path / preset / "run.toml")
    budgets = outlook(run).budgets
    ratios = [
        row.flops_ratio if run.plan.unit == "flops" else row.ffn_steps_ratio for row in budgets
    ]
    assert ratios == pytest.approx([1.0] * len(run.plan.schemes), abs=0.005)


@pytest.mark.parametrize("preset", sorted({*presets()} - {"mixing"}))
def test_every_preset_shows_how_own_data_is_allowed(preset, tmp_path):
    init_folder(tmp_path / preset, preset=preset)
    path = tmp_path / preset / "run.toml"
    assert load_run_file(path).own_data is None
    text = path.read_text()
    begin = text.index("# [own_data]")
    shown = "\n".join(line.removeprefix("# ") for line in text[begin:].splitlines())
    path.write_text(text[:begin] + shown)
    own = load_run_file(path).own_data
    assert own is not None
    assert own.harm_percent == 25.0


def test_the_paper_preset_has_the_papers_sizes(tmp_path):
    init_folder(tmp_path / "run", preset="paper")
    expected = outlook(load_run_file(tmp_path / "run" / "run.toml"))
    bodies = {row.ffn_width: row.body_parameters for row in expected.rows if row.kind == "seed"}
    assert {width: round(body / 1e6, 1) for width, body in bodies.items()} == {
        2304: 92.0,
        3072: 113.2,
        3840: 134.5,
    }
    assert {row.ffn_steps for row in expected.budgets} == {3 * 3_686_400}
    tokens = {row.num_steps: row.tokens for row in expected.rows if row.kind == "expert"}
    assert tokens[400] == 400 * 688_128


def test_an_unknown_preset_is_refused_with_the_names(tmp_path):
    with pytest.raises(InitError, match=r"preset 'bench99': expected one of bench21, bench9, demo"):
        init_folder(tmp_path / "run", preset="bench99")
    assert not (tmp_path / "run").exists()
