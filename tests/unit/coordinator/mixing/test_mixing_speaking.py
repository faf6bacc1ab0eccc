"""Text from a stranger's directory: its weights and tokenizer are used, nothing else in it."""

import json
from pathlib import Path

import llamas
import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.mixing.speaking import open_voice
from shared.mixing.ingredients import MixingError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = llamas.save(llamas.llama(), tmp_path / "llama")
    if not (path / "tokenizer.json").exists():
        llamas.byte_level().save(str(path / "tokenizer.json"))
    return path


def logits(folder: Path) -> torch.Tensor:
    return open_voice(folder).reader.read(torch.tensor([[1, 7, 9]]))


def test_a_directory_speaks_as_transformers_makes_it(folder: Path) -> None:
    model = llamas.LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([[1, 7, 9]])).logits[:, -1].log_softmax(-1)
    assert torch.allclose(logits(folder).float(), wanted, atol=1e-5)


def ask_for(folder: Path, **more: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **more}))


def test_no_kernel_and_no_other_model_is_fetched_for_a_directory(folder: Path) -> None:
    wanted = logits(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "strangers/model"}')
    ask_for(folder, attn_implementation="strangers/kernel")
    assert torch.equal(logits(folder), wanted)


def test_a_directory_with_code_of_its_own_is_refused(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('this code is a stranger')\n")
    ask_for(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    with pytest.raises(MixingError, match="auto_map"):
        open_voice(folder)


def test_weights_that_are_no_numbers_are_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(MixingError, match=r"model\.norm\.weight has NaN"):
        open_voice(folder)
