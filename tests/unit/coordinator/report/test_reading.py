"""What may be reported on, and what is refused with its reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.report.reading import ReportError, check_replicates, read_results
from tests.outcomes import Case, digest, make_results, write_run

RESULTS = make_results(Case())


def changed(path: Path, **values: object) -> Path:
    """The file at `path` with other values of some of its keys."""
    contents = json.loads(path.read_bytes())
    path.write_text(json.dumps({**contents, **values}))
    return path


def test_results_come_back_as_they_were_written(tmp_path: Path):
    assert read_results(write_run(tmp_path, RESULTS)) == RESULTS


def test_a_run_without_results_is_said_to_be_unfinished(tmp_path: Path):
    with pytest.raises(ReportError, match=r"results\.json is missing: the run is not finished"):
        read_results(tmp_path / "results.json")


def test_half_a_file_is_refused(tmp_path: Path):
    path = write_run(tmp_path, RESULTS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ReportError, match="cannot be read as JSON"):
        read_results(path)


def test_a_list_is_no_results(tmp_path: Path):
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ReportError, match="list, expected an object of results"):
        read_results(path)


def test_a_wrong_field_is_named_with_its_value_and_what_was_expected(tmp_path: Path):
    path = changed(write_run(tmp_path, RESULTS), unit="joules")
    with pytest.raises(
        ReportError, match=r"unit: 'joules': Input should be 'flops' or 'ffn_steps'"
    ):
        read_results(path)


def test_an_unknown_field_is_refused(tmp_path: Path):
    path = changed(write_run(tmp_path, RESULTS), opinion=1)
    with pytest.raises(ReportError, match="opinion: 1: Extra inputs are not permitted"):
        read_results(path)


def test_not_a_number_is_refused(tmp_path: Path):
    path = write_run(tmp_path, RESULTS)
    comparisons = [one.model_dump() for one in RESULTS.comparisons]
    comparisons[0]["low"] = float("nan")
    with pytest.raises(ReportError, match=r"comparisons\.0\.low"):
        read_results(changed(path, comparisons=comparisons))


def test_a_perplexity_of_nought_is_refused(tmp_path: Path):
    path = write_run(tmp_path, RESULTS)
    domains = [one.model_dump() for one in RESULTS.domains]
    domains[0]["columns"]["dense"]["perplexity"] = 0.0
    with pytest.raises(ReportError, match=r"domains\.python: perplexity of dense 0\.0: expected"):
        read_results(changed(path, domains=domains))


def test_an_expert_that_is_no_checkpoint_is_refused(tmp_path: Path):
    path = write_run(tmp_path, RESULTS)
    schemes = {**RESULTS.schemes, "MHo-IHo": {"python": "nobody"}}
    with pytest.raises(ReportError, match=r"schemes\.MHo-IHo\.python 'nobody': expected the name"):
        read_results(changed(path, schemes=schemes))


def test_a_trace_with_a_weight_too_few_is_refused(tmp_path: Path):
    path = write_run(tmp_path, RESULTS)
    traces = [one.model_dump() for one in RESULTS.traces]
    traces[0]["tokens"] = [*traces[0]["tokens"], "more"]
    with pytest.raises(ReportError, match=r"traces\.0\.weights of lengths \[7, 7, 7\]: expected"):
        read_results(changed(path, traces=traces))


def test_replicates_may_differ_in_their_seed_and_their_run_file():
    other = make_results(replace(Case(), rng_seed=2))
    assert other.digests != RESULTS.digests
    check_replicates({"a": RESULTS, "b": other})


@pytest.mark.parametrize(
    ("case", "difference"),
    [
        (Case(rng_seed=1), "rng_seed 1: expected another one than a.toml has"),
        (Case(rng_seed=2, held_out=3), "domains.law: held-out, .*; expected nothing"),
        (Case(rng_seed=2, schemes=("MHo-IHo",)), "schemes: MHo-IHo; expected MHo-IHe, MHo-IHo"),
    ],
)
def test_a_run_that_is_no_replicate_is_refused_with_the_difference(case: Case, difference: str):
    with pytest.raises(ReportError, match=rf"b\.toml: .*{difference}"):
        check_replicates({"a.toml": RESULTS, "b.toml": make_results(case)})


@pytest.mark.parametrize("kind", ["seed", "expert"])
def test_another_recipe_makes_no_replicate(kind: str):
    other = make_results(Case(rng_seed=2))
    checkpoints = [
        one.model_copy(
            update={"train": one.train.model_copy(update={"peak_learning_rate": 0.002})}
            if one.kind == kind
            else {}
        )
        for one in other.checkpoints
    ]
    other = other.model_copy(update={"checkpoints": tuple(checkpoints)})
    with pytest.raises(ReportError, match=rf"{kind}\.peak_learning_rate: 0\.002; expected 0\.001"):
        check_replicates({"a": RESULTS, "b": other})


@pytest.mark.parametrize("name", ["tokenizer", "split_key"])
def test_another_tokenizer_or_split_makes_no_replicate(name: str):
    other = make_results(Case(rng_seed=2))
    other = other.model_copy(update={"digests": {**other.digests, name: digest("another")}})
    with pytest.raises(ReportError, match=rf"digests\.{name}: {digest('another')}; expected"):
        check_replicates({"a": RESULTS, "b": other})
