"""A whole run whose experts branch from a model that was trained elsewhere."""

from collections.abc import Callable
from contextlib import closing
from typing import Any

import llamas
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from coordinator.ledger import Ledger, queries
from coordinator.runfile import load_run_file
from coordinator.text.prepare import prepare
from shared.blobs import BlobStore
from shared.tensorfiles import read_tensors

pytestmark = pytest.mark.timeout(400)

SECTIONS = """[shape]
hidden_size = 32
num_layers = 2
num_heads = 4
num_kv_heads = 2
rope_theta = 5e4
norm_eps = 1e-5
tied_embeddings = true
context_length = 32
[widths]
"""
SEED = """[seed]
kind = "pretrained"
[seed.pretrained]
path = "llama"
[recipe]
trains = "ffn"
"""


def pretrained(run: Any) -> None:
    """Have the run's experts branch from a fresh Llama of four times two heads."""
    torch.manual_seed(0)
    llamas.save(LlamaForCausalLM(LlamaConfig(**llamas.CONFIG)), run.root / "llama")
    text = run.run_file.read_text()
    for begin, end, new in (
        ("[tokenizer]", "S = 32", SECTIONS),
        ("[seed]", "warmup_steps = 2", SEED),
        ("[plan]", None, '[plan]\nschemes = ["MHo-IHo", "MHe-IHo"]\nhomogeneous_steps = 40\n'),
    ):
        start = text.index(begin)
        stop = len(text) if end is None else text.index(end, start)
        text = text[:start] + new + text[stop:]
    run.run_file.write_text(text)


def test_experts_branch_from_a_pretrained_seed_at_every_width(local: Callable[[str], Any]) -> None:
    run = local("run")
    pretrained(run)
    run.finish("--trainers", "1")
    rows = list(run.look(queries.accepted).values())
    (seed,) = (row for row in rows if row.spec.kind == "pretrained")
    experts = [row for row in rows if row.spec.kind == "expert"]
    assert seed.worker == run.look(queries.get_run).coordinator
    assert {row.spec.shape.ffn_width for row in experts} == {32, 48, 64}
    assert {row.spec.parent for row in experts} == {seed.spec.digest}
    with closing(Ledger(run.folders.ledger_url)) as ledger, ledger.read() as connection:
        assert queries.verify_ledger(connection).holds
    before, after = weights_of(run, seed), weights_of(run, experts[0])
    name = "model.layers.0.self_attn.k_proj.weight"
    assert before[name].tobytes() == after[name].tobytes()
    assert "lm_head.weight" not in after


def test_a_model_that_changed_ends_its_run_until_it_is_put_back(
    local: Callable[[str], Any],
) -> None:
    run = local("run")
    pretrained(run)
    prepare(load_run_file(run.run_file), run.folders, progress=lambda _: None)
    config = run.root / "llama" / "config.json"
    good = config.read_bytes()
    config.write_bytes(good + b" ")
    assert run.start("--trainers", "1").wait(200) == 1
    assert "put them back" in run.said()
    config.write_bytes(good)
    run.finish("--trainers", "1")


def weights_of(run: Any, row: queries.AcceptedRow) -> dict[str, Any]:
    path = BlobStore(run.folders.blobs).path(row.manifest.blob("model.safetensors").digest)
    return read_tensors(path)
