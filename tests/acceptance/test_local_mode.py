"""One run file, served to a real worker and trained locally: the same weights, bit for bit."""

import os
import shutil
import subprocess
import sysconfig
from contextlib import closing
from pathlib import Path

import llamas
import pytest
from swarm import BIN, Swarm

from coordinator.ledger import Ledger, queries

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(2400)]

PRETRAINED = """\
[shape]
hidden_size = 32
num_layers = 2
num_heads = 4
num_kv_heads = 2
rope_theta = 5e4
norm_eps = 1e-5
tied_embeddings = true
context_length = 64
[seed]
kind = "pretrained"
[seed.pretrained]
path = "llama"
[general]
max_bytes = 250_000
max_held_bytes = 25_000
[[general.sources]]
path = "{stdlib}/email/*.py"
document = "paragraphs:500"
[domains.asyncio]
difficulty = "easy"
max_bytes = 250_000
max_held_bytes = 25_000
[[domains.asyncio.sources]]
path = "{stdlib}/asyncio/*.py"
document = "paragraphs:500"
[domains.topics]
difficulty = "difficult"
max_bytes = 250_000
max_held_bytes = 25_000
[[domains.topics.sources]]
path = "topics/*.txt"
document = "paragraphs:500"
[plan]
schemes = ["MHe-IHo"]
homogeneous_steps = 60
[recipe]
warmup_steps = 5
final_learning_rate = 1e-3
micro_batch = 8
sequence_length = 64
max_epochs = 1000
schedule_steps = 120
"""
WIDTHS = """\
peak_learning_rate = 1e-2
[widths]
S = 32
M = 48
L = 64
"""
RANKS = """\
peak_learning_rate = 3e-2
trains = "lora"
[widths]
M = 48
[ranks]
S = 2
M = 4
L = 6
alpha = 8
"""


def accepted(folder: Path) -> dict[str, queries.AcceptedRow]:
    """Every accepted expert by spec digest, from the ledger itself."""
    with (
        closing(Ledger(f"sqlite:///{folder / 'state' / 'ledger.sqlite'}")) as ledger,
        ledger.read() as connection,
    ):
        return queries.accepted(connection)


def digests(folder: Path) -> dict[str, dict[str, str]]:
    """Every accepted expert's files of weights, by spec digest."""
    return {
        spec: {
            file.name: file.blob.digest
            for file in row.manifest.files
            if file.name.endswith(".safetensors")
        }
        for spec, row in accepted(folder).items()
    }


def train_local(run_file: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(BIN / "hdee-coordinator"), "train-local", str(run_file)],
        capture_output=True,
        text=True,
        env=dict(os.environ),
    )


def test_a_local_run_has_the_digests_of_the_swarms(tmp_path: Path) -> None:
    with Swarm(tmp_path, steps=60) as swarm:
        text = swarm.run_file.read_text()
        for long, short in (
            ("num_steps = 300", "num_steps = 120"),
            ("250_000", "250_000\nmax_held_bytes = 25_000"),
        ):
            text = text.replace(long, short)
        swarm.run_file.write_text(text)
        local = tmp_path / "local"
        shutil.copytree(swarm.run_folder, local)
        swarm.serve()
        refused = train_local(swarm.run_file)
        assert refused.returncode == 1
        assert "works on this run" in refused.stderr
        swarm.join("worker")
        swarm.wait_for("the run is finished", swarm.finished, seconds=1200)
        expected = digests(swarm.run_folder)
    done = train_local(local / "run.toml")
    assert done.returncode == 0, done.stderr
    assert digests(local) == expected
    assert len(expected) > 3


@pytest.mark.parametrize("sizes", [WIDTHS, RANKS], ids=["widths", "ranks"])
def test_experts_of_a_pretrained_model_are_the_same_in_a_swarm_and_locally(
    tmp_path: Path, sizes: str
) -> None:
    with Swarm(tmp_path, steps=60) as swarm:
        llamas.save(llamas.llama(), swarm.run_folder / "llama")
        served, _, _ = swarm.run_file.read_text().partition("[tokenizer]")
        method = PRETRAINED.format(stdlib=sysconfig.get_paths()["stdlib"]) + sizes
        swarm.run_file.write_text(served + method)
        local = tmp_path / "local"
        shutil.copytree(swarm.run_folder, local)
        swarm.serve()
        swarm.join("worker")
        swarm.wait_for("the run is finished", swarm.finished, seconds=1200)
        expected = digests(swarm.run_folder)
        rows = accepted(swarm.run_folder)
    experts = [row.spec for row in rows.values() if row.spec.kind == "expert"]
    if sizes == RANKS:
        assert {spec.lora.rank for spec in experts if spec.lora} == {2, 6}
    else:
        assert {spec.shape.ffn_width for spec in experts} == {32, 64}
    done = train_local(local / "run.toml")
    assert done.returncode == 0, done.stderr
    assert digests(local) == expected
