"""train-local as a real process: killed, stopped, refused, repeated, the same bits each time."""

import json
import os
import re
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from runs import Local

from coordinator.ledger import queries
from coordinator.ledger.tables import receipts
from coordinator.runfile import load_run_file
from coordinator.text.prepared import read_prepared

pytestmark = pytest.mark.timeout(900)


def trainers_of(pid: int) -> list[psutil.Process]:
    return [one for one in psutil.Process(pid).children() if "worker.trainer" in one.cmdline()]


def is_held_by(run: Any, pid: int) -> bool:
    return f"(process {pid}," in (run.folders.state / "in-use.lock").read_text()


def is_training_experts(run: Any) -> bool:
    """A checkpoint of an expert lies there: the seed is accepted and its work is gone."""
    return len(run.checkpoints()) > 0 and any((run.folders.experts).glob("seed-*"))


def test_a_killed_a_damaged_and_a_stopped_run_end_with_the_digests_of_an_undisturbed_one(
    local: Callable[[str], Any],
) -> None:
    calm = local("calm")
    calm.finish("--trainers", "2", "--replicates", "2", "--format", "json")
    disturbed = local("disturbed")

    first = disturbed.start("--trainers", "1")
    disturbed.wait_for(first, "the seed is begun", lambda: len(disturbed.checkpoints()) > 1)
    [trainer] = trainers_of(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert psutil.wait_procs([trainer], timeout=60)[1] == []
    (disturbed.checkpoints()[-1] / "optimizer.safetensors").write_bytes(b"torn")

    second = disturbed.start("--trainers", "2")
    disturbed.wait_for(second, "it is at work", lambda: is_held_by(disturbed, second.pid))
    refused = disturbed.start("--trainers", "1")
    assert refused.wait(150) == 1
    assert f"train-local (process {second.pid}, started" in disturbed.said()
    disturbed.wait_for(second, "an expert is begun", lambda: is_training_experts(disturbed))
    second.send_signal(signal.SIGINT)
    assert second.wait(150) == 1
    assert "the next call goes on from here" in disturbed.said()
    assert "trying once more" in disturbed.said()

    disturbed.finish("--trainers", "1")
    assert disturbed.experts() == calm.experts()
    assert len(calm.experts()) == 5
    assert disturbed.checkpoints() == []
    verdict = disturbed.look(queries.verify_ledger)
    assert verdict.holds, verdict
    assert perplexities(disturbed) == pytest.approx(perplexities(calm), rel=1e-5)
    check_prefixes(calm)
    check_replicate(calm)


def perplexities(run: Any) -> dict[tuple[str, str], float]:
    """By domain and column. The scorer's threads, and so the last digits, follow the trainers."""
    results = json.loads((run.folders.state / "results.json").read_text())
    return {
        (domain["domain"], name): measure["perplexity"]
        for domain in results["domains"]
        for name, measure in domain["columns"].items()
    }


def check_prefixes(run: Any) -> None:
    """The longer expert of a curve started where the shorter one stopped."""
    log = (run.folders.logs / "local.log").read_text()
    begun = [int(step) for step in re.findall(r"training .* from=(\d+)", log)]
    experts = [row for row in run.look(queries.accepted).values() if row.spec.kind == "expert"]
    steps: dict[str, set[int]] = {row.spec.domain: set() for row in experts}
    for row in experts:
        steps[row.spec.domain].add(row.spec.train.num_steps)
        assert row.manifest.curve[-1].step == row.spec.train.num_steps
    assert sorted(step for step in begun if step) == sorted(min(each) for each in steps.values())
    credited = dict.fromkeys(steps, 0)
    spec_of = {row.spec.digest: row.spec for row in experts}
    for receipt in run.look(lambda connection: connection.execute(receipts.select()).all()):
        if receipt.spec in spec_of:
            credited[spec_of[receipt.spec].domain] += receipt.num_steps
    assert credited == {domain: max(each) for domain, each in steps.items()}


def check_replicate(run: Any) -> None:
    """A complete run of other random numbers and the same shards."""
    answer = json.loads("{\n" + run.said().split("\n{\n")[1].split("\n}\n")[0] + "\n}")
    assert [one["rng_seed"] for one in answer["runs"]] == [0, 1000]
    folder = run.root / "replicates" / "2"
    again = load_run_file(folder / "run.toml")
    assert (again.seed.recipe.rng_seed, again.recipe.rng_seed) == (1000, 1000)
    prepared = [read_prepared(one / "state" / "prepared.json") for one in (run.root, folder)]
    assert prepared[0].prepared == prepared[1].prepared
    digest = prepared[0].prepared.shard("drama", "test").blob.digest
    files = [one / "state" / "sealed" / "data" / digest for one in (run.root, folder)]
    assert os.path.samefile(*files)
    other = Local(folder)
    assert other.look(queries.get_run).phase == "finished"
    assert not set(other.experts()) & set(run.experts())


def test_a_run_that_cannot_go_on_says_why_and_ends_with_one(local: Callable[[str], Any]) -> None:
    run = local("run")
    text = run.run_file.read_text()
    run.run_file.write_text(text.replace("peak_learning_rate = 1e-2", "peak_learning_rate = 1.0"))
    assert run.start("--trainers", "1").wait(120) == 1
    words = r"stalled: 64-wide general seed \(a[0-9a-f]{16}\): (rejected|inconclusive): "
    assert re.search(words, run.said()), run.said()
