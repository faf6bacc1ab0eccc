"""Experts from directories: just what transformers and PEFT would read, or refused by name."""

import json
from pathlib import Path

import llamas
import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from coordinator.mixing.ingredients import open_ingredient, read_vocabulary
from coordinator.pretrained.opening import open_source
from coordinator.scoring.export import export_checkpoint
from coordinator.scoring.measuring import Checkpoint
from shared import model as models
from shared.mixing.ingredients import MixingError, check_fit, survey
from shared.mixing.making import make_mixture
from shared.mixing.opening import open_mixture
from shared.mixing.recipe import make_recipe
from shared.tensorfiles import model_tensors
from shared.text.tokenizer import learn

# peft asks transformers for something by a name that will go
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(2, llamas.VOCAB, (2, 20)))
MATRICES = ["q_proj", "o_proj", "down_proj"]


def weights(model) -> dict[str, np.ndarray]:
    return {name: one.detach().float().numpy() for name, one in model.named_parameters()}


def adapter(folder: Path, base: Path, *, targets=MATRICES, seed=0, **settings) -> Path:
    """A directory as PEFT writes it, of an adapter with random A and B."""
    model = llamas.LlamaForCausalLM.from_pretrained(base)
    options = {"r": 3, "lora_alpha": 5, "target_modules": targets, **settings}
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return llamas.save(llamas.llama(), tmp_path_factory.mktemp("models") / "base")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", ["30KB", "1GB"])
def test_a_directory_is_read_exactly_in_any_precision_and_any_number_of_files(
    tmp_path, dtype, size
):
    model = llamas.llama().to(dtype)
    found = open_ingredient(
        llamas.save(model, tmp_path / "hf", max_shard_size=size), name="law", domain="courts"
    )
    assert (found.name, found.domain, found.origin) == ("law", "courts", "hf")
    assert len(found.files) == (len(list((tmp_path / "hf").glob("*.safetensors"))) + 1)
    for name, expected in weights(model).items():
        assert np.array_equal(found.read(name), expected), name


def test_an_exported_expert_is_the_checkpoint_it_was_exported_from(tmp_path):
    shape = open_ingredient(llamas.save(llamas.llama(), tmp_path / "hf"), name="hf").shape
    model = models.build(shape, rng_seed=3)
    models.save(model, tmp_path / "expert.safetensors")
    tokenizer = tmp_path / "tokenizer.model"
    tokenizer.write_bytes(learn(["the king", "return values"] * 60, vocab_size=300))
    checkpoint = Checkpoint(digest="a" * 64, path=tmp_path / "expert.safetensors", shape=shape)
    export_checkpoint(checkpoint, name="python", experts=tmp_path / "experts", tokenizer=tokenizer)
    found = open_ingredient(tmp_path / "experts" / "python", name="python")
    for name in model_tensors(shape):
        assert np.array_equal(found.read(name), dict(weights(model))[name])
    assert read_vocabulary(tmp_path / "experts" / "python").bos_id == 1


def test_a_tokenizer_is_the_same_in_each_of_its_forms(tmp_path):
    model, learned = llamas.llama(), learn(["the king", "return values"] * 60, vocab_size=300)
    digests = []
    for form in ("model", "json", "none", "other"):
        folder = llamas.save(model, tmp_path / form)
        if form != "other":
            (folder / "tokenizer.json").unlink()
        if form in ("model", "json"):
            (folder / "tokenizer.model").write_bytes(learned)
        if form == "json":
            read_vocabulary(folder).write_hf(folder)
            (folder / "tokenizer.model").unlink()
        digests.append(open_ingredient(folder, name=form).vocabulary)
    assert digests[0] == digests[1]
    assert digests[2] is None
    assert digests[3] not in digests[:3]
    seed, expert = (open_ingredient(tmp_path / form, name=form) for form in ("model", "other"))
    with pytest.raises(MixingError, match=r"other: its tokenizer .* model.embed_tokens.weight"):
        check_fit([expert], seed)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"r": 8, "targets": ["gate_proj"]},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"layers.1.self_attn.o_proj": 9}},
    ],
    ids=["plain", "another rank", "rank stabilised", "ranks by module"],
)
def test_an_adapter_is_added_as_peft_adds_it(tmp_path, base, settings):
    path = adapter(tmp_path / "adapter", base, **settings)
    theirs = PeftModel.from_pretrained(llamas.LlamaForCausalLM.from_pretrained(base), path)
    expected = weights(theirs.merge_and_unload())
    found = open_ingredient(path, name="law", base=base)
    for name in model_tensors(found.shape):
        assert np.allclose(found.read(name), expected[name], rtol=1e-5, atol=1e-6), name
    assert found.is_adapter
    assert set(found.files) >= {"adapter/adapter_model.safetensors", "base/model.safetensors"}


def test_only_what_an_adapter_touches_differs_from_its_base(tmp_path, base):
    plain = survey(open_ingredient(base, name="seed"))
    for targets, changed in ((["up_proj"], {"ffn"}), (["q_proj", "up_proj"], {"ffn", "q_proj"})):
        path = adapter(tmp_path / targets[0], base, targets=targets)
        found = survey(open_ingredient(path, name="law", base=base))
        assert {part for part in plain if found[part] != plain[part]} == changed


def test_an_adapter_for_another_base_is_refused_by_name(tmp_path, base):
    path = adapter(tmp_path / "adapter", base)
    wide = llamas.save(llamas.llama(intermediate_size=64), tmp_path / "wide")
    with pytest.raises(MixingError, match=r"base_model_name_or_path = .*/base'"):
        open_ingredient(path, name="law", base=wide)
    _say_base(path, "someone/else")
    with pytest.raises(MixingError, match=r"layers.0.mlp.down_proj.lora_A.weight is \[3, 48\]"):
        open_ingredient(path, name="law", base=wide)
    short = llamas.save(llamas.llama(num_hidden_layers=1), tmp_path / "short")
    with pytest.raises(MixingError, match=r"layers.1.mlp.down_proj.lora_A.*no such matrix"):
        open_ingredient(path, name="law", base=short)
    with pytest.raises(MixingError, match="name it with --base"):
        open_ingredient(path, name="law")


def test_an_adapter_names_another_checkpoint_of_a_run(tmp_path, base):
    path = adapter(tmp_path / "adapter", base)
    _say_base(path, "seed-ffn48-0123abcd")
    named = tmp_path / "seed-ffn48-ffffffff"
    named.symlink_to(base)
    assert open_ingredient(path, name="law", base=named).is_adapter
    copy = llamas.save(llamas.llama(), tmp_path / "seed-ffn48-eeeeeeee")
    with pytest.raises(MixingError, match="expected 'seed-ffn48-eeeeeeee'"):
        open_ingredient(path, name="law", base=copy)


def _say_base(path: Path, name: str) -> None:
    _change(path, base_model_name_or_path=name)


def _change(path: Path, **values) -> None:
    config = json.loads((path / "adapter_config.json").read_bytes())
    (path / "adapter_config.json").write_text(json.dumps({**config, **values}))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"use_dora": True}, "use_dora = true: expected false or null"),
        ({"peft_type": "IA3"}, 'peft_type = "IA3"'),
        ({"bias": "all"}, 'bias = "all"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights = "pissa"'),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"r": 4}, "rank 4 of .*: its A has 3 rows"),
        ({"lora_alpha": None}, "alpha None"),
        ({"rank_pattern": {"(a+)+": 3}}, "rank_pattern.*: expected a module's name"),
    ],
)
def test_an_adapter_that_does_more_than_add_matrices_is_refused(tmp_path, base, values, problem):
    path = adapter(tmp_path / "adapter", base)
    _change(path, **values)
    with pytest.raises(MixingError, match=problem):
        open_ingredient(path, name="law", base=base)


def test_a_damaged_adapter_is_refused_by_name(tmp_path, base):
    path = adapter(tmp_path / "adapter", base)
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    gone = sorted(tensors)[0]
    save_file({name: one for name, one in tensors.items() if name != gone}, file)
    with pytest.raises(MixingError, match=f"{gone} is missing, beside its pair"):
        open_ingredient(path, name="law", base=base)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2)}, file)
    with pytest.raises(MixingError, match=r"lm_head.weight': the base has no such matrix"):
        open_ingredient(path, name="law", base=base)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(MixingError, match=r"adapter_model.safetensors"):
        open_ingredient(path, name="law", base=base)
    file.rename(path / "adapter_model.bin")
    with pytest.raises(MixingError, match="adapters are read from safetensors alone"):
        open_ingredient(path, name="law", base=base)


def test_weights_that_are_no_floats_are_refused_by_name(tmp_path):
    folder = llamas.save(llamas.llama(), tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.int64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(MixingError, match=r"law: .*tensor model.norm.weight is I64"):
        survey(open_ingredient(folder, name="law"))


def test_pickled_weights_are_not_opened(tmp_path):
    folder = llamas.save(llamas.llama(), tmp_path / "hf")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(MixingError, match=r"law: .*model.safetensors: cannot be read"):
        open_ingredient(folder, name="law")


def test_a_directory_an_export_and_an_adapter_become_one_mixture(tmp_path, base):
    """Half precision and shards, a run's expert of another width, and a rank: each its own self."""
    seed = open_ingredient(base, name="seed", domain="general")
    shape = seed.shape.model_copy(update={"ffn_width": 20})
    narrow = models.build(shape, rng_seed=4)
    models.save(narrow, tmp_path / "narrow.safetensors")
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(open_source(base).tokenizer())
    export_checkpoint(
        Checkpoint(digest="a" * 64, path=tmp_path / "narrow.safetensors", shape=shape),
        name="narrow",
        experts=tmp_path,
        tokenizer=tokenizer,
    )
    rounded = llamas.llama(intermediate_size=36).to(torch.bfloat16)
    llamas.save(rounded, tmp_path / "half", max_shard_size="30KB")
    adapter(tmp_path / "adapter", base)
    experts = [
        open_ingredient(tmp_path / "narrow", name="narrow"),
        open_ingredient(tmp_path / "half", name="half"),
        open_ingredient(tmp_path / "adapter", name="adapted", base=base),
    ]
    facts = make_mixture(
        experts,
        seed,
        make_recipe({"router": {"kind": "gateless"}, "anchor": True}),
        statistics={},
        vocabulary=read_vocabulary(base),
        into=tmp_path / "mixture",
    )
    assert [one.ffn_width for one in facts.experts] == [48, 20, 36, 48]
    mixture = open_mixture(tmp_path / "mixture")
    plain = llamas.LlamaForCausalLM.from_pretrained(base)
    half = llamas.LlamaForCausalLM.from_pretrained(tmp_path / "half", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(
        llamas.LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    for number, model in enumerate((plain, narrow, half, adapted)):
        with torch.inference_mode():
            expected = model(input_ids=TOKENS).logits
            found = mixture(input_ids=TOKENS, gates=mixture.forced(number, like=TOKENS)).logits
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4), number
