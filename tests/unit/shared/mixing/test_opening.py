"""A mixture's folder is opened by our own code, and only if it holds what its config says."""

import json
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.ingredients import MixingError
from shared.mixing.opening import mixture_tensors, open_mixture, reconfigured
from shared.tensorfiles import TensorFileError


@pytest.fixture
def folder(tiny_mixture, tmp_path):
    model = tiny_mixture(owned=["embeddings", "head"])
    model.generation_config.pad_token_id = 0
    model.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"owned": ["embeddings", "head"]},
        {"owned": ["embeddings", "head"], "tie_word_embeddings": True},
        {"tie_word_embeddings": True},
        {"router": "fine", "expert_layers": [1], "base_width": 9},
        {"router": "deep", "router_hidden_size": 5},
        {"router": "global", "router_bias": True},
    ],
)
def test_what_was_saved_computes_the_same_once_opened(
    tiny_mixture, tokens, tmp_path, changes
) -> None:
    model = tiny_mixture(**changes)
    model.save_pretrained(tmp_path)
    opened = open_mixture(tmp_path)
    ids = tokens(2, 9)
    with torch.no_grad():
        assert torch.equal(opened(input_ids=ids).logits, model(input_ids=ids).logits)
    assert {
        name: tuple(tensor.shape)
        for name, tensor in load_file(tmp_path / "model.safetensors").items()
    } == {name: form for name, (_, form) in mixture_tensors(opened.config).items()}


def test_settings_of_generation_are_the_folders(folder) -> None:
    assert open_mixture(folder).generation_config.pad_token_id == 0


def test_a_folder_may_hold_no_settings_of_generation(folder) -> None:
    (folder / "generation_config.json").unlink()
    assert open_mixture(folder).generation_config.bos_token_id == 1


def test_the_folders_own_code_is_never_run(folder) -> None:
    for module in folder.glob("*.py"):
        module.write_text("raise SystemExit('this code is a stranger')\n")
    open_mixture(folder)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("model_type", "llama", "model_type 'llama'"),
        ("expert_widths", [8, 12], "expert_widths"),
        ("router", "oracle", "router: 'oracle'"),
        ("hidden_size", "wide", "hidden_size"),
        ("num_hidden_layers", 10**9, "num_hidden_layers: 1000000000"),
        ("num_hidden_layers", 10**4, "num_hidden_layers 10000"),
        ("num_key_value_heads", 0, "num_key_value_heads: 0, expected a divisor"),
        ("num_key_value_heads", 3, "num_key_value_heads: 3, expected a divisor"),
        ("num_attention_heads", 0, "num_attention_heads: 0, expected from 1"),
        ("max_position_embeddings", 0, "max_position_embeddings: 0, expected from 1"),
        ("head_dim", 10**9, "head_dim: 1000000000, expected an even number"),
        ("head_dim", 3, "head_dim: 3, expected an even number"),
        ("vocab_size", 10**30, "vocab_size: 10+, expected from 1"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps: nan, expected more than 0"),
        ("rms_norm_eps", -1e-6, "rms_norm_eps: -1e-06"),
        ("rms_norm_eps", 1e9, "rms_norm_eps: 1000000000.0"),
        ("attention_dropout", 5.0, "attention_dropout: 5.0, expected from 0"),
        ("initializer_range", float("nan"), "initializer_range: nan, expected from 0"),
        ("bos_token_id", 48, "bos_token_id: 48, expected ids of the vocabulary, from 0 to 47"),
        ("bos_token_id", 10**30, "bos_token_id: 10+, expected"),
        ("eos_token_id", [0, 99], r"eos_token_id: \[0, 99\], expected"),
        ("pad_token_id", -1, "pad_token_id: -1, expected"),
        ("prefix_sharpness", 1e300, r"prefix_sharpness: 1e\+300, expected from 0 to 1e6"),
        ("router_hidden_size", 10**30, "router_hidden_size: 10+, expected from 1"),
        ("base_width", 0, "base_width: 0, expected from 1"),
        ("hidden_act", "oracle", "hidden_act: 'oracle', expected an activation's name"),
        ("rope_parameters", {"rope_type": "oracle"}, "oracle"),
        ("rope_parameters", {"rope_type": "linear", "factor": 2.0}, "expected rope_type 'default'"),
        ("rope_parameters", {"rope_theta": 0}, "rope_parameters.rope_theta: 0, expected a number"),
        ("rope_parameters", {"rope_theta": float("nan")}, "rope_parameters.rope_theta: nan"),
        ("rope_parameters", {"rope_theta": "wide"}, "rope_parameters.rope_theta: 'wide'"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling: .*, expected none"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_its_field(folder, field, value, word) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(MixingError, match=word):
        open_mixture(folder)


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([10**4, 10**9, 2**63, 10**30, "", "x", "1", {}, [], [None], {"rope_theta": 1}]),
    st.floats(),
    st.lists(st.integers(-1, 50), max_size=3),
    st.text(max_size=3),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_other_value_of_a_field_is_refused_by_name_or_computes_numbers(folder, data) -> None:
    path = folder / "config.json"
    good = json.loads(path.read_text())
    field = data.draw(st.sampled_from(sorted(HdeeMoeConfig.__annotations__.keys() & good.keys())))
    path.write_text(json.dumps({**good, field: data.draw(JSON)}))
    words = ""
    try:
        with torch.no_grad():
            logits = open_mixture(folder)(input_ids=torch.tensor([[1, 5, 9, 5]])).logits
    except (MixingError, TensorFileError) as error:
        words = str(error)
    finally:
        path.write_text(json.dumps(good))
    if words:
        # a field, or the tensor that is not as the fields say
        assert re.search(r"^\S+: (Validation error for field '|tensor )?[a-z_.']+", words)
        assert len(words) < 600
    else:
        assert logits.shape == (1, 4, 48)
        assert torch.isfinite(logits).all()


def test_an_error_quotes_no_whole_file(folder) -> None:
    path = folder / "config.json"
    for field in ("router", "model_type", "hidden_size", "rope_scaling", "owned"):
        path.write_text(json.dumps({**json.loads(path.read_text()), field: "x" * 500_000}))
        with pytest.raises(MixingError) as caught:
            open_mixture(folder)
        assert len(str(caught.value)) < 600


def test_the_rotary_base_of_older_releases_is_heeded(folder) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["rope_parameters"]
    path.write_text(json.dumps({**config, "rope_theta": 123_456.0}))
    assert open_mixture(folder).config.rope_parameters["rope_theta"] == 123_456.0


@pytest.mark.parametrize(
    "more",
    [
        {"num_labels": 10**9},
        {"return_dict": False},
        {"attn_implementation": "strangers/kernel"},
        {"quantization_config": {"quant_method": "oracle"}},
    ],
)
def test_what_else_a_configuration_asks_for_is_not_heeded(folder, tokens, more) -> None:
    ids = tokens(1, 6)
    before = open_mixture(folder)(ids).logits
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))
    assert torch.equal(open_mixture(folder)(ids).logits, before)


@pytest.mark.parametrize("text", ['{"watermarking_config": {"x": 1}}', '{"compile_config": {}}'])
def test_settings_of_generation_that_cannot_be_are_refused_by_their_file(folder, text) -> None:
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(MixingError, match=r"generation_config\.json"):
        open_mixture(folder)


@pytest.mark.parametrize("name", ["model.router.log_likelihoods", "model.norm.weight"])
def test_a_tensor_that_is_no_number_is_refused_by_name(folder, name) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[name].view(-1)[3] = torch.nan
    save_file(tensors, path)
    with pytest.raises(TensorFileError, match=f"{name} has NaN"):
        open_mixture(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(folder, text) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(MixingError, match=r"config\.json"):
        open_mixture(folder)


def test_tensors_that_the_configuration_does_not_say_are_refused_by_name(folder) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, path)
    with pytest.raises(TensorFileError, match=name):
        open_mixture(folder)
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, path)
    with pytest.raises(TensorFileError, match=f"{name}' is missing"):
        open_mixture(folder)
    save_file({**tensors, "model.extra": torch.zeros(1)}, path)
    with pytest.raises(TensorFileError, match=r"'model\.extra' is not expected"):
        open_mixture(folder)


@pytest.mark.parametrize(
    "changes", [{"prefix_sharpness": 0.1}, {"prefix_decay": 0.5}, {"selection": "top_k"}]
)
def test_a_model_under_another_configuration_decides_as_one_that_was_made_so(
    tiny_mixture, mixture_config, tokens, changes
) -> None:
    before = tiny_mixture(gate_top_k=1)
    wanted = tiny_mixture(gate_top_k=1, **changes)
    model = reconfigured(before, mixture_config(gate_top_k=1, **changes))
    ids = tokens(2, 12)
    assert torch.equal(model(ids).logits, wanted(ids).logits)
    assert not torch.equal(model(ids).logits, before(ids).logits)
    assert model.lm_head.weight.data_ptr() == before.lm_head.weight.data_ptr()
