"""Tokenizers that pretrained models bring, beside the one that a run learns."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import AutoTokenizer

from shared.text.tokenizer import TokenizerError, learn
from shared.text.vocabulary import FastModel, open_vocabulary, read_given

TEXT = ["def f(x):\n    return x  # a note", "Once upon a time; naïve 漢字 😀 <s>", " two  spaces "]


def byte_level(**changes: object) -> Tokenizer:
    """A byte-level BPE as GPT-2 and Llama 3 have it, learned from a few words."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[AddedToken("<|end|>", special=True), AddedToken("<|begin|>", special=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


@pytest.fixture
def model() -> bytes:
    return FastModel(tokenizer_json=byte_level().to_str(), bos_id=1, eos_id=0).to_bytes()


def test_a_learned_tokenizer_is_a_vocabulary(tmp_path):
    vocabulary = open_vocabulary(learn(TEXT * 50, vocab_size=300))
    assert (vocabulary.size, vocabulary.bos_id, vocabulary.eos_id) == (300, 1, 2)
    ids = vocabulary.encode(TEXT)
    assert [vocabulary.decode(one) for one in ids] == TEXT
    vocabulary.write_hf(tmp_path / "hf")
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").encode(TEXT[0]) == [1, *ids[0]]


def test_a_byte_level_tokenizer_gives_back_any_text(model):
    vocabulary = open_vocabulary(model)
    assert (vocabulary.size, vocabulary.bos_id, vocabulary.eos_id) == (300, 1, 0)
    hard = ["<|begin|> is text <|end|>", "\x00\x07\ufeff\u2028 ☃", "", *TEXT]
    ids = vocabulary.encode(hard)
    assert [vocabulary.decode(one) for one in ids] == hard
    assert all(2 <= token < 300 for one in ids for token in one)


def test_the_exported_tokenizer_gives_the_same_ids_and_begins_documents(model, tmp_path):
    vocabulary = open_vocabulary(model)
    vocabulary.write_hf(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "vocab_size": 300}')
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("<|begin|> is text", *TEXT):
        (ids,) = vocabulary.encode([text])
        assert tokenizer.encode(text) == [1, *ids]
        assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|begin|>", "<|end|>")


def test_a_tokenizer_json_that_cuts_texts_off_is_not_let_do_it(model):
    cutting = byte_level()
    cutting.enable_truncation(3)
    cutting.enable_padding(length=50)
    found = FastModel(tokenizer_json=cutting.to_str(), bos_id=1, eos_id=0).to_bytes()
    assert open_vocabulary(found).encode(TEXT) == open_vocabulary(model).encode(TEXT)


@pytest.mark.parametrize(
    ("tokenizer", "ids", "problem"),
    [
        (byte_level(normalizer=normalizers.Lowercase()), (1, 0), "does not give back the text"),
        (byte_level(decoder=decoders.Fuse()), (1, 0), "does not give back the text"),
        (byte_level(), (300, 0), "bos_id 300: expected one of its 300 ids"),
        (byte_level(), (1, 999), "eos_id 999"),
    ],
)
def test_a_tokenizer_that_would_change_what_is_measured_is_refused(tokenizer, ids, problem):
    with pytest.raises(TokenizerError, match=problem):
        FastModel(tokenizer_json=tokenizer.to_str(), bos_id=ids[0], eos_id=ids[1]).to_bytes()


@pytest.mark.parametrize("content", [b"{}", b"[1]", b"\xff\xfe", b"", b'{"model": {"type": "X"}}'])
def test_a_damaged_tokenizer_file_is_refused_by_name(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        read_given(path, bos_id=1, eos_id=0)


def test_a_given_file_is_read_by_its_kind(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text(byte_level().to_str())
    assert read_given(tmp_path / "tokenizer.json", bos_id=1, eos_id=0) == model
    pieces = learn(TEXT * 50, vocab_size=300)
    (tmp_path / "tokenizer.model").write_bytes(pieces)
    assert read_given(tmp_path / "tokenizer.model", bos_id=7, eos_id=7) == pieces
    with pytest.raises(TokenizerError, match="cannot be read"):
        read_given(tmp_path / "none.json", bos_id=1, eos_id=0)


@pytest.mark.parametrize("content", [b'{"tokenizer_json": "{}"}', b"{"])
def test_a_damaged_file_of_the_run_is_refused(content):
    with pytest.raises(TokenizerError, match="not a tokenizer"):
        open_vocabulary(content)
