"""Every option of the method in two tiny runs on this machine, from text to results."""

import json
import random
from contextlib import closing

import pytest
from runs import Local, chain

from coordinator.ledger import Ledger, queries
from coordinator.runfile import load_run_file
from coordinator.scoring.outcome import Results

pytestmark = pytest.mark.timeout(900)

TRAINED = ("animals", "boats", "colours", "dishes", "engines", "flowers")
RUN_FILE = """
[run]
name = "whole"
[tokenizer]
vocab_size = 300
[shape]
hidden_size = 32
num_layers = 1
num_heads = 2
context_length = 32
[widths]
S = 36
M = 48
L = 60
[general]
sources = [{path = "general/*.txt", document = "split:(?m)^#"}]
[seed]
kind = "nested"
[seed.recipe]
num_steps = 60
warmup_steps = 5
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
max_epochs = 50
[recipe]
warmup_steps = 2
peak_learning_rate = 1e-2
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 32
schedule_steps = 90
max_epochs = 50
"""
LINEAGES = """
[plan]
schemes = ["MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive"]
experts = "lineages"
rounds = 2
rehearsal = 0.2
homogeneous_steps = 60
steps = {easy = 45, moderate = 60, difficult = 75}
probe_steps = [30, 45]
[dense]
learning_rates = [5e-3, 1e-2]
trial_steps = 40
[evaluation]
weight_averages = true
"""
BRANCHES = """
[plan]
schemes = ["MHo-IHo"]
rounds = 2
branch = "average"
homogeneous_steps = 60
"""


@pytest.fixture
def made(tmp_path):
    """Makes a run of six invented languages to train on and one that nobody trains on."""
    runs = []

    def make(plan):
        draw = random.Random(5)
        letters = "bcdfghjklmnprstvwz"
        said = [a + vowel + b for a in letters for vowel in "aeiou" for b in letters]
        draw.shuffle(said)
        words = {name: [said.pop() for _ in range(9)] for name in (*TRAINED, "games")}
        texts = {name: [chain(own, draw) for _ in range(750)] for name, own in words.items()}
        every = [word for own in words.values() for word in own]
        texts["general"] = [" ".join(draw.choices(every, k=14)) for _ in range(400)]
        file = RUN_FILE
        for name, documents in texts.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "0.txt").write_text("".join(f"# {one}\n" for one in documents))
            if name != "general":
                file += f"[domains.{name}]\nmax_held_bytes = 4_000\n"
                file += f'sources = [{{path = "{name}/*.txt", document = "split:(?m)^#"}}]\n'
                file += 'role = "held-out"\n' if name == "games" else ""
        (tmp_path / "run.toml").write_text(file + plan)
        runs.append(Local(tmp_path))
        return runs[-1]

    yield make
    for run in runs:
        run.end()


def results_of(run) -> Results:
    contents = json.loads((run.folders.state / "results.json").read_text())
    return Results.model_validate_json(
        json.dumps({key: contents[key] for key in Results.model_fields})
    )


def test_all_schemes_along_lineages_with_rehearsal_and_the_dense_baseline(made):
    run = made(LINEAGES)
    run.finish("--trainers", "2")
    assert run.look(queries.get_run).round == 2
    results = results_of(run)
    schemes = ["MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive"]
    assert list(results.schemes) == schemes
    assert {scheme: len(members) for scheme, members in results.members.items()} == dict.fromkeys(
        schemes, 3
    )
    assert [row.flops_ratio for row in results.budgets] == pytest.approx([1.0] * 5, abs=0.005)
    columns = {"seed M", "dense", "dense+seed", *schemes, *(one + "+seed" for one in schemes)}
    for domain in results.domains:
        assert set(domain.columns) == columns
        assert domain.role == ("held-out" if domain.domain == "games" else "trained")
        assert len(domain.schemes["MHo-IHo"].modes) == 20
    # What was trained on last is known best: the ensemble beats the seed wherever it was trained.
    trained = [one for one in results.domains if one.role == "trained"]
    last = [one for one in trained if one.round == 2]
    assert len(last) == 3
    for domain in last:
        assert domain.columns["MHo-IHo"].perplexity < domain.columns["seed M"].perplexity / 2
    # Each expert of a second round on the domain of the first: the diagonal and what is below it.
    remembered = {(one.after_round, one.trained_in) for one in results.remembered}
    assert remembered == {(1, 1), (2, 1), (2, 2)}
    kinds = [one.kind for one in results.checkpoints]
    assert kinds.count("dense") == 3
    adaptive = [one for one in results.checkpoints if "adaptive" in one.schemes]
    for number in (1, 2):
        steps = [one.train.num_steps for one in adaptive if one.round == number]
        assert sum(steps) == 3 * 60
    run_file = load_run_file(run.run_file)
    with closing(Ledger(run.folders.ledger_url)) as ledger, ledger.read() as connection:
        names = {row.domain for row in queries.all_domains(connection)}
    rounds = {domain.domain: domain.round for domain in trained}
    late = {f"{name}.rehearsed" for name in run_file.trained if rounds[name] == 2}
    assert names == {"general", "games", "mixed", *TRAINED, *late}


def test_later_experts_branch_from_the_average_of_the_earlier_ones(made):
    run = made(BRANCHES)
    run.finish("--trainers", "2")
    results = results_of(run)
    assert len(results.members["MHo-IHo"]) == len(TRAINED)
    averages = {one.name: one for one in results.checkpoints if one.kind == "average"}
    late = [one for one in results.checkpoints if one.round == 2 and one.kind == "expert"]
    assert len(late) == 3
    for expert in late:
        average = averages[expert.parent]
        assert average.domain == expert.domain
        assert sum(one.share for one in average.ingredients) == pytest.approx(1, abs=1e-5)
    assert run.look(queries.verify_ledger).holds
