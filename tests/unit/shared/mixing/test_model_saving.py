"""A saved mixture loads in plain transformers, in a process that cannot import this package."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM

STRANGER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("shared", "protocol", "worker", "coordinator", "hivemind"):
            raise ImportError(f"{name} is not installed here")
        return None

sys.meta_path.insert(0, Blocker())

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

folder, again = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
ids = load_file(folder + "/ids.safetensors")["ids"]
with torch.no_grad():
    logits = model(input_ids=ids).logits
generated = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
save_file({"logits": logits, "generated": generated}, folder + "/made.safetensors")
assert type(model).__module__.startswith("transformers_modules.")
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).expert_widths == [8, 12, 20]
model.save_pretrained(again)
"""


def test_a_process_without_this_package_loads_and_generates(tiny_mixture, tokens, tmp_path) -> None:
    folder, again = tmp_path / "mixture", tmp_path / "again"
    model = tiny_mixture(owned=["embeddings", "head"], prefix_decay=0.97)
    model.save_pretrained(folder)
    ids = tokens(2, 9)
    save_file({"ids": ids}, folder / "ids.safetensors")
    program = tmp_path / "stranger.py"
    program.write_text(STRANGER)
    done = subprocess.run(
        [sys.executable, "-I", str(program), str(folder), str(again)],
        cwd=tmp_path,
        env={"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    made = load_file(folder / "made.safetensors")
    with torch.no_grad():
        # that process may sum in other threads
        assert torch.allclose(made["logits"], model(input_ids=ids).logits, atol=1e-5)
    expected = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert torch.equal(made["generated"], expected)
    assert modules(again) == modules(folder)


def test_a_folder_holds_all_modelling_code(tiny_mixture, tmp_path) -> None:
    tiny_mixture().save_pretrained(tmp_path)
    source = Path(sys.modules[HdeeMoeForCausalLM.__module__].__file__).parent
    assert modules(tmp_path) == {
        path.name: path.read_text() for path in source.glob("*_hdee_moe.py")
    }
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_hdee_moe.HdeeMoeConfig",
        "AutoModelForCausalLM": "modeling_hdee_moe.HdeeMoeForCausalLM",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"owned": ["embeddings", "head"], "tie_word_embeddings": True},
        {"router": "linear", "router_bias": True},
        {"router": "deep", "expert_layers": [0], "base_width": 7},
    ],
)
def test_saving_and_loading_changes_nothing(tiny_mixture, tokens, tmp_path, changes) -> None:
    model = tiny_mixture(**changes)
    model.save_pretrained(tmp_path)
    loaded = HdeeMoeForCausalLM.from_pretrained(tmp_path)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (
        loaded.config.to_diff_dict().items()
        >= {key: value for key, value in changes.items() if key != "owned"}.items()
    )


def test_evidence_stays_fp32_in_a_model_of_bfloat16(tiny_mixture, tokens, tmp_path) -> None:
    model = tiny_mixture(owned=["head"])
    model.save_pretrained(tmp_path)
    loaded = HdeeMoeForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.experts[0].weight.dtype == torch.bfloat16
    ids = tokens(2, 9)
    with torch.no_grad():
        expected, made = model(input_ids=ids), loaded(input_ids=ids)
    assert torch.equal(made.expert_probabilities, expected.expert_probabilities)
    assert made.logits.dtype == torch.bfloat16
    assert torch.isfinite(made.logits).all()


def test_weights_that_are_not_loaded_are_drawn(mixture_config) -> None:
    model = HdeeMoeForCausalLM(mixture_config(owned=["norms", "embeddings"]))
    assert not model.model.router.log_likelihoods.any()
    assert model.model.norm.experts[1].weight.eq(1).all()
    assert 0 < model.model.embed_tokens.experts[1].weight.std() < 0.1


def modules(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.py")}
