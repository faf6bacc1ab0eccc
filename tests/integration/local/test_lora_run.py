"""A whole run of one FFN width, whose experts are LoRA adapters of several ranks."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch
from runs import BIN
from transformers import LlamaForCausalLM

from coordinator.ledger import queries
from coordinator.scoring.outcome import Results
from shared.blobs import BlobStore
from shared.lora import adapter_names, is_merged
from shared.tensorfiles import read_tensors

pytestmark = [
    pytest.mark.timeout(600),
    # peft asks transformers by a name that transformers is giving up
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

SCHEMES = ["MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive"]
PLAN = """[plan]
schemes = ["MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive"]
homogeneous_steps = 80
steps = {easy = 60, moderate = 80, difficult = 100}
probe_steps = [30, 50]
[ranks]
S = 2
M = 4
L = 6
alpha = 8
[dense]
learning_rates = [3e-2]
"""


def with_ranks(run: Any) -> None:
    text = run.run_file.read_text()
    text = text.replace("S = 32\nM = 48\nL = 64", "M = 48")
    recipe = '[recipe]\ntrains = "lora"\n'
    text = text.replace("[recipe]\n", recipe).replace(
        "schedule_steps = 400", "schedule_steps = 120"
    )
    head, _, tail = text.partition(recipe)
    tail = tail.replace("peak_learning_rate = 1e-2", "peak_learning_rate = 3e-2")
    run.run_file.write_text(head + recipe + tail[: tail.index("[plan]")] + PLAN)


def verb(run: Any, *arguments: str) -> str:
    command = [str(BIN / "hdee-coordinator"), *arguments]
    done = subprocess.run(
        command, cwd=run.root, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ranks_take_the_place_of_widths_from_plan_to_report(local: Callable[[str], Any]) -> None:
    run = local("run")
    with_ranks(run)
    costs = verb(run, "plan", "--dry-run", "run.toml")
    assert all(f"rank {rank}" in costs for rank in (2, 4, 6))
    run.finish("--trainers", "2")
    contents = json.loads((run.folders.state / "results.json").read_text())
    results = Results.model_validate_json(
        json.dumps({key: contents[key] for key in Results.model_fields})
    )
    assert list(results.schemes) == SCHEMES
    assert [row.flops_ratio for row in results.budgets] == pytest.approx([1.0] * 5, abs=0.005)
    facts = {one.name: one for one in results.checkpoints}
    for scheme, experts in results.schemes.items():
        ranks = {domain: facts[name].lora.rank for domain, name in experts.items()}
        differ = scheme in ("MHe-IHo", "MHe-IHe")
        assert ranks == ({"drama": 2, "python": 6} if differ else {"drama": 4, "python": 4})
    assert {one.shape.ffn_width for one in results.checkpoints} == {48}
    (dense,) = (one for one in results.checkpoints if one.kind == "dense")
    assert dense.lora.rank == 4
    assert dense.name.startswith("dense-rank4-")
    for domain in results.domains:
        assert domain.columns["MHe-IHe"].perplexity < domain.columns["seed M"].perplexity
    check_weights(run)
    verb(run, "report", "run.toml")
    page = (run.root / "report" / "index.html").read_text()
    assert "LoRA rank" in page


def check_weights(run: Any) -> None:
    """Every expert is the seed with its adapter added, and so it was exported."""
    store = BlobStore(run.folders.blobs)
    rows = run.look(queries.accepted).values()
    (seed,) = (row for row in rows if row.spec.kind == "seed")
    assert seed.spec.nested_widths == ()
    before = read_tensors(store.path(seed.manifest.blob("model.safetensors").digest))
    experts = [row for row in rows if row.spec.kind == "expert"]
    for row in experts:
        after, adapter = (
            read_tensors(store.path(row.manifest.blob(name).digest))
            for name in ("model.safetensors", "adapter.safetensors")
        )
        for name, weight in before.items():
            a, b = adapter_names(name.removesuffix(".weight"))
            if a in adapter:
                scale = 8 / row.spec.lora.rank
                assert is_merged(after[name], weight, adapter[a], adapter[b], scale=scale), name
            else:
                assert after[name].tobytes() == weight.tobytes(), name
    check_export(run, experts[0])


def check_export(run: Any, row: queries.AcceptedRow) -> None:
    (folder,) = run.folders.experts.glob(f"*-{row.spec.digest[:8]}")
    (base,) = run.folders.experts.glob("seed-*")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == row.spec.lora.rank
    assert config["base_model_name_or_path"] == base.name
    whole = LlamaForCausalLM.from_pretrained(folder)
    peft = pytest.importorskip("peft")
    model = LlamaForCausalLM.from_pretrained(base)
    adapted = peft.PeftModel.from_pretrained(model, folder / "adapter")
    tokens = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        expected, found = (one(input_ids=tokens).logits for one in (whole, adapted))
    torch.testing.assert_close(expected, found, rtol=1e-5, atol=1e-5)
