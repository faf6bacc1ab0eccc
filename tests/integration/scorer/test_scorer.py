"""The scorer from an empty ledger to a table: restarts, ensembles, exports, the role itself."""

import json
import logging
import math
import threading
import time

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from coordinator.ledger import queries
from coordinator.scoring.pulse import Stopped
from coordinator.scoring.scorer import run_scorer
from protocol.assignments import AssignmentState
from protocol.views import ResultTable
from shared import clock
from shared.blobs import BlobStore
from shared.model import load
from shared.shards import Shard, scoring_windows
from shared.tensorfiles import read_tensors


def test_a_run_goes_from_nothing_to_a_table(tiny):
    tiny.to_the_end()
    snapshot = tiny.snapshot()
    assert snapshot.phase == "finished"
    assert {row.state for row in snapshot.assignments} == {AssignmentState.ACCEPTED}
    assert len(tiny.rows("seed")) == 1
    assert len(tiny.rows("expert")) == 5
    table = snapshot.results
    assert [row.domain for row in table.rows] == ["cooking", "drama", "python"]
    for row in table.rows:
        assert row.perplexity["MHo-IHo"] < 0.8 * row.perplexity["seed M"]
        assert row.perplexity["MHo-IHo+seed"] < 0.8 * row.perplexity["seed M"]
    tied = {row.domain: bool(row.tied) for row in table.rows}
    assert tied == {"cooking": False, "drama": False, "python": True}
    written = json.loads((tiny.folders.state / "results.json").read_text())
    assert ResultTable.model_validate(written["table"]) == table
    assert [domain["domain"] for domain in written["domains"]] == ["cooking", "drama", "python"]


def test_a_role_killed_after_every_step_plans_nothing_twice(tiny):
    def settle_with_restarts():
        for _ in range(50):
            tiny.scorer = tiny.new_scorer()
            if not tiny.scorer.step():
                return

    tiny.settle = settle_with_restarts
    tiny.to_the_end()
    with tiny.ledger.read() as connection:
        kinds = [entry.kind for entry in queries.read_entries(connection)]
        assert queries.verify_chain(connection) is None
    assert tiny.snapshot().phase == "finished"
    assert kinds.count("plan") == 6
    assert kinds.count("accept") == 6
    assert kinds.count("results") == 1


def test_scoring_again_computes_nothing_again(tiny):
    tiny.to_the_end()
    folder = tiny.folders.sealed / "likelihoods"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with tiny.ledger.begin() as connection:
        queries.set_phase(connection, "scoring", "again", tiny.time)
    tiny.new_scorer().step()
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert tiny.snapshot().phase == "finished"


def test_experts_are_measured_while_others_still_train(tiny):
    tiny.to_experts()
    first, second = tiny.rows("expert")[:2]
    tiny.hand_in(first)
    tiny.hand_in(second, worker=1)
    tiny.settle()
    assert tiny.snapshot().phase == "training"
    with tiny.ledger.read() as connection:
        accepted = queries.accepted(connection)
    for row in (first, second):
        digest = accepted[row.spec.digest].manifest.blob("model.safetensors").digest
        entries = list((tiny.folders.sealed / "likelihoods").glob(f"{digest}-*.npy"))
        assert len(entries) == 1 + 2 * 3, "its gate shard, and dev and test of three domains"


def test_a_role_stopped_while_it_scores_goes_on_from_its_cache(tiny):
    tiny.to_experts()
    rows = tiny.rows("expert")
    for row in rows:
        tiny.hand_in(row)
    for _ in rows:
        tiny.scorer.step()
    folder = tiny.folders.sealed / "likelihoods"
    before = {path.name for path in folder.glob("*.sha256")}
    stop = threading.Event()

    def now():
        if len(list(folder.glob("*.sha256"))) >= len(before) + 3:
            stop.set()
        return tiny.time

    with pytest.raises(Stopped):
        tiny.new_scorer(stop=stop, now=now).step()
    during = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.sha256")}
    assert tiny.snapshot().phase == "scoring"
    assert before < during.keys()
    tiny.new_scorer().step()
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.sha256")}
    assert during.items() < after.items()
    assert tiny.snapshot().phase == "finished"


def spoil(store, digest, how):
    """Lose, cut or change a blob; what puts it back."""
    path = store.path(digest)
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[:-5])
    elif how == "changed":
        path.write_bytes(data[:-4] + bytes(4))
    return lambda: path.write_bytes(data)


@pytest.mark.parametrize("how", ["lost", "cut", "changed"])
def test_a_lost_or_damaged_accepted_file_stalls_the_run_until_it_is_put_back(tiny, how):
    tiny.to_experts()
    row = tiny.rows("expert", "cooking")[0]
    with tiny.ledger.read() as connection:
        (seed,) = queries.accepted(connection).values()
    digest = seed.manifest.blob("model.safetensors").digest
    tiny.train(row.spec)
    put_back = spoil(tiny.store, digest, how)
    tiny.hand_in(row)
    tiny.scorer = tiny.new_scorer()
    tiny.settle()
    with tiny.ledger.read() as connection:
        run = queries.get_run(connection)
    assert run.phase == "stalled"
    assert digest in run.phase_reason
    assert "the file of seed-" in run.phase_reason
    assert tiny.row(row.assignment).state is AssignmentState.SUBMITTED, "not the worker's fault"
    put_back()
    tiny.time += 31
    tiny.settle()
    assert tiny.row(row.assignment).state is AssignmentState.ACCEPTED
    assert tiny.snapshot().phase == "training"


def test_an_accepted_file_damaged_under_the_running_role_stalls_the_run(tiny):
    tiny.to_experts()
    row = tiny.rows("expert", "cooking")[0]
    with tiny.ledger.read() as connection:
        (seed,) = queries.accepted(connection).values()
    tiny.train(row.spec)
    tiny.hand_in(row)
    spoil(tiny.store, seed.manifest.blob("model.safetensors").digest, "cut")
    tiny.settle()
    assert tiny.snapshot().phase == "stalled"
    assert tiny.row(row.assignment).state is AssignmentState.SUBMITTED


def direct_posterior_perplexity(tiny, schemes, domain):
    """The uniform-prior posterior ensemble from full distributions, token by token, in fp64."""
    with tiny.ledger.read() as connection:
        accepted = queries.accepted(connection)
    rows = [row for row in tiny.rows("expert") if schemes in row.schemes]
    models = [
        load(
            tiny.store.path(accepted[row.spec.digest].manifest.blob("model.safetensors").digest),
            row.spec.shape,
        ).double()
        for row in rows
    ]
    manifest = tiny.prepared.shard(domain, "test")
    sealed = BlobStore(tiny.folders.sealed)
    shard = Shard.read(sealed.path(manifest.blob.digest), vocab_size=manifest.vocab_size)
    windows = scoring_windows(shard, 32)
    nats, labels = 0.0, 0
    for start, length in zip(windows.starts, windows.lengths, strict=True):
        tokens = torch.tensor(shard.tokens[start : start + length + 1].astype(np.int64))
        with torch.no_grad():
            distributions = [
                model(input_ids=tokens[None, :-1]).logits[0].softmax(dim=-1) for model in models
            ]
        weights = [1 / len(models)] * len(models)
        for position, token in enumerate(tokens[1:]):
            mixed = sum(
                weight * p[position] for weight, p in zip(weights, distributions, strict=True)
            )
            assert float(mixed.sum()) == pytest.approx(1.0, abs=1e-9)
            nats -= math.log(float(mixed[token]))
            joint = [
                weight * float(p[position, token])
                for weight, p in zip(weights, distributions, strict=True)
            ]
            weights = [value / sum(joint) for value in joint]
            labels += 1
    return math.exp(nats / labels)


def test_the_posterior_ensemble_agrees_with_the_full_distributions(tiny):
    tiny.to_the_end()
    for scheme in ("MHo-IHo", "MHe-IHo"):
        row = next(row for row in tiny.snapshot().results.rows if row.domain == "python")
        direct = direct_posterior_perplexity(tiny, scheme, "python")
        assert row.perplexity[scheme] == pytest.approx(direct, rel=1e-6)


def test_accepted_checkpoints_load_with_transformers_and_generate(tiny):
    tiny.to_experts()
    row = tiny.rows("expert", "python")[0]
    tiny.hand_in(row)
    tiny.settle()
    tiny.scorer.step()
    names = sorted(path.name for path in tiny.folders.experts.iterdir())
    seed = tiny.rows("seed")[0].spec.digest[:8]
    assert names == [
        f"python-ffn48-{row.spec.digest[:8]}",
        f"seed-ffn32-{seed}",
        f"seed-ffn48-{seed}",
        f"seed-ffn64-{seed}",
    ]
    for name in names:
        folder = tiny.folders.experts / name
        model = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert model.config.intermediate_size == int(name.split("ffn")[1].split("-")[0])
        prompt = tokenizer("def return", return_tensors="pt")
        written = model.generate(**prompt, max_new_tokens=8, do_sample=False)
        assert written.shape[1] <= prompt["input_ids"].shape[1] + 8
        assert tokenizer.decode(written[0], skip_special_tokens=True).startswith("def return")
    trained = read_tensors(tiny.train(row.spec))
    exported = model_tensors_of(tiny.folders.experts / names[0])
    assert exported.keys() == trained.keys()
    assert all(np.array_equal(exported[name], trained[name]) for name in trained)


def model_tensors_of(folder):
    return read_tensors(folder / "model.safetensors")


def test_a_plan_out_of_balance_stalls_with_its_numbers(tiny):
    tiny.run = tiny.run.model_copy(
        update={
            "domains": {
                name: domain.model_copy(update={"difficulty": "difficult"})
                for name, domain in tiny.run.domains.items()
            }
        }
    )
    tiny.scorer = tiny.new_scorer()
    tiny.to_experts()
    with tiny.ledger.read() as connection:
        run = queries.get_run(connection)
    assert run.phase == "stalled"
    assert "budgets differ" in run.phase_reason
    assert tiny.rows("expert") == []


def wait_for(condition, *, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.02)


def test_the_role_runs_the_whole_run_beats_and_stops_when_asked(tiny):
    stop = threading.Event()
    role = threading.Thread(
        target=run_scorer,
        args=(tiny.run, tiny.folders, tiny.prepared, tiny.ledger),
        kwargs={"stop": stop, "now": clock.now, "log": logging.getLogger("test.role")},
    )
    tiny.time = clock.now()
    role.start()
    try:
        wait_for(lambda: tiny.rows("seed"))
        tiny.hand_in(tiny.rows("seed")[0])
        wait_for(lambda: len(tiny.rows("expert")) == 5)
        for row in tiny.rows("expert"):
            tiny.hand_in(row)
        wait_for(lambda: tiny.snapshot().phase == "finished")
        with tiny.ledger.read() as connection:
            assert clock.now() - queries.role_beats(connection)["scorer"] < 5
    finally:
        stop.set()
        role.join(timeout=60)
    assert not role.is_alive()
    assert isinstance(tiny.snapshot().results, ResultTable)
