"""The tokenizer is reproducible, loses no text, and is the same in both of its forms."""

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from shared.text.tokenizer import (
    BOS,
    EOS,
    UNK,
    TokenizerError,
    learn,
    open_tokenizer,
    read_model,
    write_hf_tokenizer,
)

TEXT = (Path(__file__).read_text("utf-8"), Path(json.__file__).read_text("utf-8"))
HARD = (
    "",
    " ",
    " leading and trailing  ",
    "tabs\tand\t\tnewlines\n\n\r\nend\n",
    "déjà vu, naïve Ωμέγα, 漢字, e\u0301",
    "😀👩‍👩‍👧 ☃",
    "<s> a </s> <unk> <0x0A> ▁ [INST]",
    "\x00\x07\ufeff\u00a0\u2028",
    "1234567890 3.14159",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
)


@pytest.fixture(scope="module")
def model() -> bytes:
    return learn(TEXT, vocab_size=600)


@pytest.fixture(scope="module")
def pair(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "made.model").write_bytes(model)
    write_hf_tokenizer(folder / "made.model", folder / "hf")
    return open_tokenizer(model), AutoTokenizer.from_pretrained(folder / "hf")


def test_the_same_text_gives_the_same_bytes(model):
    assert learn(TEXT, vocab_size=600) == model
    assert learn(TEXT[::-1], vocab_size=601) != model


def test_special_ids_and_size_are_as_promised(model, pair):
    pieces, tokenizer = pair
    assert (UNK, BOS, EOS) == (0, 1, 2)
    assert (pieces.unk_id(), pieces.bos_id(), pieces.eos_id(), pieces.pad_id()) == (0, 1, 2, -1)
    ids = (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert ids == (0, 1, 2)
    assert pieces.vocab_size() == len(tokenizer) == 600


@given(st.text(st.sampled_from(" \n\t\rabe<s>/▁é1=#😀\u0301"), max_size=80))
@settings(max_examples=300, deadline=None)
@example("".join(HARD))
@example("x" + " " * 67 + "y")
def test_both_forms_give_the_same_ids(pair, text):
    pieces, tokenizer = pair
    ids = pieces.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert tokenizer.encode(text) == [BOS, *ids]


@pytest.mark.parametrize("text", [*HARD, *TEXT])
def test_text_survives_encoding_in_both_forms(pair, text):
    pieces, tokenizer = pair
    ids = pieces.encode(text)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    expected = text.replace("▁", " ")
    assert pieces.decode(ids) == expected
    assert tokenizer.decode(ids) == expected


def test_the_form_is_the_same_beside_the_config_of_a_llama(model, tmp_path):
    (tmp_path / "made.model").write_bytes(model)
    write_hf_tokenizer(tmp_path / "made.model", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 600}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = open_tokenizer(model).encode("  def f():\n\treturn <s>\n")
    assert tokenizer.encode("  def f():\n\treturn <s>\n") == [BOS, *ids]


def test_a_vocabulary_larger_than_the_text_allows_is_refused():
    with pytest.raises(TokenizerError, match=r"vocab_size = 5000.*too small"):
        learn(["a few words only"], vocab_size=5000)


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT[0].splitlines()),
        model_writer=model,
        minloglevel=2,
        **{
            "vocab_size": 500,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            **options,
        },
    )
    return model.getvalue()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"model_type": "unigram"}, "model_type BPE"),
        ({"byte_fallback": False, "vocab_size": 300}, "byte_fallback"),
        ({"normalization_rule_name": "nfkc"}, "identity normalization"),
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces off"),
        ({"bos_id": 5}, "unk 0, bos 1, eos 2"),
        ({"user_defined_symbols": "@@"}, "no user-defined pieces"),
    ],
)
def test_a_given_model_of_another_family_is_refused(tmp_path, options, expected):
    path = tmp_path / "given.model"
    path.write_bytes(trained(**options))
    with pytest.raises(TokenizerError, match=expected) as caught:
        read_model(path)
    assert str(path) in str(caught.value)


def test_a_given_model_with_a_dummy_prefix_keeps_its_ids(tmp_path):
    path = tmp_path / "given.model"
    path.write_bytes(trained())
    pieces = open_tokenizer(read_model(path))
    write_hf_tokenizer(path, tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("two words", " a  lead", "line\nbreak"):
        ids = pieces.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 100])
def test_a_damaged_model_is_refused(tmp_path, content):
    path = tmp_path / "given.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"given\.model"):
        read_model(path)


def test_a_missing_model_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match=r"nowhere\.model: cannot be read"):
        read_model(tmp_path / "nowhere.model")
