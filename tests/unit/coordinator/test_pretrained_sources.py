"""Llamas from elsewhere: read, they compute what transformers does; others are refused by name."""

import json
import struct
from pathlib import Path

import llamas
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentencepiece.sentencepiece_model_pb2 import ModelProto

from coordinator.pretrained.gguf_tokenizer import tokenizer_of
from coordinator.pretrained.opening import open_source
from coordinator.pretrained.source import SourceError, origin_of, write_own
from shared import model as models
from shared.text.tokenizer import learn
from shared.text.vocabulary import open_vocabulary

TOKENS = torch.from_numpy(np.random.default_rng(0).integers(0, llamas.VOCAB, (2, 40)))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS, use_cache=False).logits


def imported(path: Path, folder: Path):
    source = open_source(path)
    write_own(source, folder / "own.safetensors")
    return models.load(folder / "own.safetensors", source.anatomy.shape)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": False, "num_key_value_heads": 4},
        {"num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    ],
    ids=["tied", "untied", "one key head"],
)
@pytest.mark.parametrize("form", ["one file", "shards", "gguf"])
def test_an_imported_model_computes_what_the_original_does(tmp_path, changes, form):
    model = llamas.llama(**changes)
    if form == "gguf":
        path = llamas.save_gguf(model, tmp_path / "model.gguf")
    else:
        size = {"max_shard_size": "30KB"} if form == "shards" else {}
        path = llamas.save(model, tmp_path / "hf", **size)
        assert (path / "model.safetensors.index.json").exists() == (form == "shards")
    ours = imported(path, tmp_path)
    assert torch.allclose(logits(ours), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_exactly(tmp_path, dtype):
    model = llamas.llama().to(dtype)
    ours = imported(llamas.save(model, tmp_path / "hf"), tmp_path)
    theirs = dict(model.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter, theirs[name].float()), name


def test_a_tokenizer_comes_with_the_model(tmp_path):
    folder = open_source(llamas.save(llamas.llama(), tmp_path / "hf"))
    file = open_source(llamas.save_gguf(llamas.llama(), tmp_path / "model.gguf"))
    texts = ["the king returns 1984 values", "<|begin|> onion\n\t naïve"]
    learned = [open_vocabulary(source.tokenizer()) for source in (folder, file)]
    ids = [vocabulary.encode(texts) for vocabulary in learned]
    assert ids[0] == ids[1]
    assert [learned[1].decode(one) for one in ids[1]] == texts
    assert {(vocabulary.bos_id, vocabulary.eos_id) for vocabulary in learned} == {(1, 0)}


def test_digits_are_cut_as_the_file_says(tmp_path):
    path = llamas.save_gguf(llamas.llama(), tmp_path / "model.gguf", pre="smollm")
    vocabulary = open_vocabulary(open_source(path).tokenizer())
    assert len(vocabulary.encode(["1984"])[0]) == 4
    other = llamas.save_gguf(llamas.llama(), tmp_path / "other.gguf", pre="llama-bpe")
    assert open_vocabulary(open_source(other).tokenizer()).decode([40, 41])
    strange = llamas.save_gguf(llamas.llama(), tmp_path / "strange.gguf", pre="other")
    with pytest.raises(SourceError, match=r"tokenizer.ggml.pre = 'other': expected one of"):
        open_source(strange).tokenizer()


def test_a_sentencepiece_tokenizer_is_read_from_either_form(tmp_path):
    texts = ["the king and the onion", "return value\n\tnaïve 漢字", "  two  spaces "]
    learned = learn(texts * 40, vocab_size=300)
    expected = open_vocabulary(learned).encode(texts)
    folder = llamas.save(llamas.llama(), tmp_path / "hf")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(learned)
    assert open_vocabulary(open_source(folder).tokenizer()).encode(texts) == expected
    pieces = ModelProto.FromString(learned).pieces
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece.piece for piece in pieces],
        "tokenizer.ggml.scores": [piece.score for piece in pieces],
        "tokenizer.ggml.token_type": [piece.type for piece in pieces],
        "tokenizer.ggml.add_space_prefix": False,
    }
    vocabulary = open_vocabulary(tokenizer_of(fields.get, where="a file", bos_id=1, eos_id=2))
    assert vocabulary.encode(texts) == expected
    assert [vocabulary.decode(ids) for ids in expected] == texts


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model = 'bert': expected 'gpt2' or 'llama'"),
        ({"model": "llama"}, "its tokenizer cannot be used"),
        ({"model": "llama", "tokens": ["a"], "scores": [], "token_type": [1]}, "cannot be used"),
        ({"model": "gpt2", "pre": "gpt-2", "merges": ["a b"]}, "cannot be used"),
    ],
)
def test_a_damaged_tokenizer_of_a_gguf_is_refused(fields, problem):
    named = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    with pytest.raises(SourceError, match=f"a file: .*{problem}"):
        tokenizer_of(named.get, where="a file", bos_id=1, eos_id=2)


def test_the_key_of_older_releases_gives_the_rotary_base(tmp_path):
    path = llamas.save(llamas.llama(), tmp_path / "hf")
    config = json.loads((path / "config.json").read_text())
    del config["rope_parameters"]
    (path / "config.json").write_text(json.dumps({**config, "rope_theta": 123_456}))
    assert open_source(path).anatomy.shape.rope_theta == 123_456.0
    (path / "config.json").write_text(json.dumps(config))
    assert open_source(path).anatomy.shape.rope_theta == 10_000.0
    both = {**config, "rope_theta": 500_000.0, "rope_parameters": {"rope_type": "default"}}
    (path / "config.json").write_text(json.dumps(both))
    assert open_source(path).anatomy.shape.rope_theta == 500_000.0
    assert llamas.LlamaConfig.from_pretrained(path).rope_parameters["rope_theta"] == 500_000.0


def test_the_origin_names_every_byte(tmp_path):
    path = llamas.save(llamas.llama(), tmp_path / "hf")
    before = origin_of(open_source(path))
    assert origin_of(open_source(path)) == before
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, path / "model.safetensors")
    assert origin_of(open_source(path)) != before


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model_type": "gpt2"}, 'model_type = "gpt2": expected "llama" or "mistral"'),
        ({"model_type": "mistral"}, "sliding_window is missing"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window = 16: expected null"),
        ({"attention_bias": True}, "attention_bias = true: expected false"),
        ({"mlp_bias": True}, "mlp_bias = true"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu": expected "silu"'),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = "),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters = .*llama3"),
        ({"rope_interleaved": True}, "rope_interleaved = true"),
        ({"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map = "),
        ({"head_dim": 16}, "head_dim = 16: expected 8"),
        ({"num_key_value_heads": 3}, "num_kv_heads 3: expected a divisor"),
        ({"num_hidden_layers": 3}, r"model\.layers\.2\S* is missing"),
        ({"num_hidden_layers": 10**15}, "num_layers = 10+: expected at most 1024"),
        ({"num_hidden_layers": 1}, r"model\.layers\.1\S*: not part of"),
        ({"intermediate_size": 47}, r"mlp.gate_proj.weight is \[48, 32\], expected \[47, 32\]"),
        ({"vocab_size": "many"}, "vocab_size = 'many'"),
        ({"vocab_size": 2**60}, "vocab_size = "),
        ({"bos_token_id": 300}, "bos_token_id = 300: expected from 0 to 299"),
        ({"bos_token_id": "<s>"}, "bos_token_id = .*: expected an id"),
        ({"bos_token_id": None, "eos_token_id": None}, "neither bos_token_id nor eos_token_id"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
        ({"rms_norm_eps": -1.0}, "norm_eps = -1"),
        ({"rms_norm_eps": float("nan")}, "norm_eps = nan"),
        ({"max_position_embeddings": 0}, "context_length = 0"),
        ({"num_key_value_heads": 0}, "num_kv_heads = 0"),
        ({"num_key_value_heads": ""}, "num_kv_heads = ''"),
        ({"attention_dropout": 5}, "attention_dropout = 5: expected a number from 0 to 1"),
        ({"initializer_range": float("nan")}, "initializer_range = NaN: expected a number"),
        ({"pad_token_id": 300}, "pad_token_id = 300: expected from -1 to 299"),
        ({"pad_token_id": "x"}, 'pad_token_id = "x": expected from'),
        ({"eos_token_id": [0, 300]}, r"eos_token_id = \[0, 300\]: expected from 0 to 299"),
        ({"eos_token_id": [None]}, r"eos_token_id = \[null\]: expected an id"),
        ({"eos_token_id": []}, r"eos_token_id = \[\]: expected an id"),
        ({"rope_theta": 0}, "rope_theta = 0: expected 50000.0, as rope_parameters says"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "rope_theta = nan"),
        ({"rope_parameters": {"type": "linear", "factor": 2.0}}, "rope_parameters = .*linear"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rope_parameters = .*partial"),
    ],
)
def test_another_architecture_is_refused_with_key_value_and_expectation(tmp_path, changes, problem):
    path = llamas.save(llamas.llama(), tmp_path / "hf")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(SourceError, match=problem):
        open_source(path)


JSON = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.sampled_from([10**9, 2**63, 10**30, "", "x", "1", {}, [], [None], {"rope_theta": 1}]),
    st.floats(),
    st.lists(st.integers(-1, 310), max_size=3),
    st.text(max_size=3),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return llamas.save(llamas.llama(), tmp_path_factory.mktemp("sources") / "hf")


@settings(max_examples=50)
@given(data=st.data())
def test_any_other_value_of_a_key_is_refused_by_file_or_computes_numbers(whole, data):
    path = whole / "config.json"
    good = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted({*good, "rope_scaling", "rope_theta"})))
    path.write_text(json.dumps({**good, key: data.draw(JSON)}))
    try:
        assert torch.isfinite(logits(imported(whole, whole))).all()
    except SourceError as error:
        words = str(error)
    else:
        words = str(whole)
    finally:
        path.write_text(json.dumps(good))
    assert words.startswith(str(whole))
    assert len(words) < len(str(path)) + 500


def test_a_mistral_without_a_sliding_window_is_a_llama(tmp_path):
    model = llamas.llama()
    path = llamas.save(model, tmp_path / "hf")
    config = json.loads((path / "config.json").read_text())
    changes = {"model_type": "mistral", "sliding_window": None}
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    assert torch.allclose(logits(imported(path, tmp_path)), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", None, "config.json: cannot be read"),
        ("config.json", b"{", "config.json: not JSON"),
        ("config.json", b"[" * 100_000, "config.json: not JSON"),
        ("config.json", b"[]", "expected a JSON object"),
        ("model.safetensors", None, "model.safetensors: cannot be read"),
        ("model.safetensors", b"\xff" * 64, "header of"),
        ("model.safetensors.index.json", b"{}", "weight_map: expected tensors"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"model.norm.weight": "../../etc/x.safetensors"}}',
            "expected the name of a safetensors file beside it",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"model.norm.weight": "pytorch_model.bin"}}',
            "expected the name of a safetensors file",
        ),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"strange": "model.safetensors"}}',
            "tensor strange is missing",
        ),
    ],
)
def test_a_damaged_directory_is_refused_by_file(tmp_path, file, content, problem):
    path = llamas.save(llamas.llama(), tmp_path / "hf")
    (path / file).unlink(missing_ok=True)
    if content is not None:
        (path / file).write_bytes(content)
    with pytest.raises(SourceError, match=problem):
        open_source(path)


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = llamas.llama()
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    source = open_source(llamas.save(model, tmp_path / "hf"))
    with pytest.raises(SourceError, match=r"model\.norm\.weight has NaN"):
        write_own(source, tmp_path / "own.safetensors")
    assert not (tmp_path / "own.safetensors").exists()
    path = llamas.save(llamas.llama(), tmp_path / "whole")
    tensors = load_file(path / "model.safetensors")
    tensors["model.norm.weight"] = torch.ones(32, dtype=torch.int64)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(SourceError, match="is I64, expected one of"):
        write_own(open_source(path), tmp_path / "own.safetensors")


def test_a_directory_without_a_tokenizer_says_so(tmp_path):
    path = llamas.save(llamas.llama(), tmp_path / "hf")
    (path / "tokenizer.json").unlink()
    with pytest.raises(SourceError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        open_source(path).tokenizer()


def test_what_is_no_model_is_refused(tmp_path):
    for name, content in (("weights.bin", b"x"), ("none.gguf", None), ("bad.gguf", b"GGUF" * 9)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=name):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ({"llama.rope.scaling.type": "yarn"}, r"llama.rope.scaling.type = 'yarn': expected none"),
    ],
)
def test_another_gguf_is_refused(tmp_path, metadata, problem):
    path = llamas.save_gguf(llamas.llama(), tmp_path / "model.gguf", **metadata)
    with pytest.raises(SourceError, match=problem):
        open_source(path)


def test_a_gguf_that_announces_more_than_it_has_is_refused(tmp_path):
    string, array, eight_bits = 8, 9, 0
    key = b"general.x"
    header = struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, len(key)) + key
    endless = {
        "array": struct.pack("<IIQ", array, eight_bits, 2**60),
        "string": struct.pack("<IQ", string, 2**40),
    }
    for name, field in endless.items():
        (tmp_path / f"{name}.gguf").write_bytes(header + field + b"x" * 64)
        with pytest.raises(SourceError, match=r"not a GGUF file: .*it ends before byte"):
            open_source(tmp_path / f"{name}.gguf")


def test_a_truncated_gguf_is_refused(tmp_path):
    path = llamas.save_gguf(llamas.llama(), tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(SourceError, match="not a GGUF file"):
        open_source(path)
