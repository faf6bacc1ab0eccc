"""The tokenizer in the metadata of a GGUF file: byte-level BPE, or SentencePiece. Pure."""

from collections.abc import Callable
from typing import Any

from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, Regex, decoders, pre_tokenizers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from coordinator.pretrained.source import SourceError
from shared.text.vocabulary import FastModel, open_vocabulary

_CONTROL, _USER_DEFINED = 3, 4
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BPE = 2


def tokenizer_of(field: Callable[[str], Any], *, where: str, bos_id: int, eos_id: int) -> bytes:
    """What `open_vocabulary` takes, from the metadata that `field` gives by key.

    Raises SourceError, which names `where`, for another kind and for what is missing or damaged.
    """
    kind = field("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            text = _byte_level(field, where).to_str()
            return FastModel(tokenizer_json=text, bos_id=bos_id, eos_id=eos_id).to_bytes()
        if kind == "llama":
            model = _pieces(field)
            open_vocabulary(model)
            return model
    except SourceError:
        raise
    except Exception as error:  # the libraries raise bare exceptions
        raise SourceError(f"{where}: its tokenizer cannot be used: {error}") from error
    raise SourceError(f"{where}: tokenizer.ggml.model = {kind!r:.80}: expected 'gpt2' or 'llama'")


def _byte_level(field: Callable[[str], Any], where: str) -> FastTokenizer:
    names, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(pair.split(" ", 1)) for pair in field("tokenizer.ggml.merges")]
    cutters = _cutters()
    cut = field("tokenizer.ggml.pre")
    if cut not in cutters:
        raise SourceError(
            f"{where}: tokenizer.ggml.pre = {cut!r:.80}: expected one of {sorted(cutters)}; "
            "[tokenizer] model takes the model's tokenizer.json"
        )
    vocab = {name: index for index, name in enumerate(names)}
    bpe = BPE(vocab=vocab, merges=merges, ignore_merges=cut == "llama-bpe")
    tokenizer = FastTokenizer(bpe)
    tokenizer.pre_tokenizer = cutters[cut]
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(name, normalized=False, special=True)
            for name, kind in zip(names, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    tokenizer.add_tokens(
        [
            AddedToken(name, normalized=False)
            for name, kind in zip(names, kinds, strict=True)
            if kind == _USER_DEFINED
        ]
    )
    return tokenizer


def _cutters() -> dict[str, pre_tokenizers.PreTokenizer]:
    """How text is cut before pairs are joined, by llama.cpp's names."""
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {
        "gpt-2": plain,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain]),
        "llama-bpe": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA_3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }


def _pieces(field: Callable[[str], Any]) -> bytes:
    proto = ModelProto()
    columns = [field(f"tokenizer.ggml.{name}") for name in ("tokens", "scores", "token_type")]
    for text, score, kind in zip(*columns, strict=True):
        piece = proto.pieces.add()
        piece.piece, piece.score, piece.type = text, score, kind
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.byte_fallback = _BPE, True
    trainer.vocab_size = len(proto.pieces)
    normalizer.name = "identity"
    prefix = field("tokenizer.ggml.add_space_prefix")
    normalizer.add_dummy_prefix = True if prefix is None else prefix
    normalizer.remove_extra_whitespaces = False
    model: bytes = proto.SerializeToString()
    return model
