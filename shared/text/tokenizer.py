"""The run's SentencePiece tokenizer, learned or given, and its Hugging Face form.

Only one family is accepted, so that both forms give the same ids: BPE with byte fallback, text left
as it is, unk 0, bos 1, eos 2.
"""

import io
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from sentencepiece.sentencepiece_model_pb2 import ModelProto  # type: ignore[attr-defined]
from tokenizers import AddedToken, decoders, normalizers, processors
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import BPE

from shared.files import write_atomic
from shared.text.errors import PrepareError

UNK, BOS, EOS = 0, 1, 2
MAX_MODEL_BYTES = 16_000_000
MAX_TRAINING_BYTES = 16_000_000
"""Enough for a vocabulary of 65,536, and some seconds of work."""

_MAX_LINE = 8192
_INDENTATIONS = (2, 4, 8, 16)
"""Runs of spaces that become pieces, so that code is not spelled space by space."""
_INDENTATION_COUNT = 10_000
_SPACE = "▁"
_BPE = 2
_UNKNOWN, _CONTROL, _BYTE = 2, 3, 6
_NORMAL = 1


class TokenizerError(PrepareError):
    """A tokenizer cannot be learned or used; the message says what was expected."""


def learn(documents: Iterable[str], *, vocab_size: int) -> bytes:
    """A SentencePiece model of `vocab_size` pieces, learned from the first 16 MB of `documents`.

    The same documents in the same order give the same bytes. Newline and tab are pieces of their
    own and never part of another, so are usual indentations; rare characters are spelled in bytes.
    Raises TokenizerError when the text is too small for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=0.9999,
            required_chars="\n\t",
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            max_sentence_length=4 * _MAX_LINE,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"tokenizer.vocab_size = {vocab_size}: the general text is too small for it ({error})"
        ) from error
    return model.getvalue()


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for width in _INDENTATIONS:
        yield from itertools.repeat(" " * width, _INDENTATION_COUNT)
    left = MAX_TRAINING_BYTES
    for document in documents:
        for line in document.replace("\t", "\n").splitlines():
            piece = line[:_MAX_LINE]
            left -= len(piece.encode())
            if left < 0:
                return
            if piece:
                yield piece


def open_tokenizer(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """The tokenizer whose SentencePiece model is `model`.

    Raises TokenizerError when it is damaged or not of the accepted family.
    """
    _parse(model)
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def read_model(path: Path) -> bytes:
    """The bytes of the SentencePiece model at `path`; TokenizerError when there is none to use."""
    try:
        if path.stat().st_size > MAX_MODEL_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_MODEL_BYTES} bytes")
        model = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        _parse(model)
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error
    return model


def _parse(model: bytes) -> Any:
    proto = ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise TokenizerError("not a SentencePiece model") from error
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    kinds = [piece.type for piece in proto.pieces]
    expected = {
        "model_type BPE": trainer.model_type == _BPE,
        "byte_fallback": trainer.byte_fallback and kinds.count(_BYTE) == 256,
        "identity normalization": not normalizer.precompiled_charsmap,
        "remove_extra_whitespaces off": not normalizer.remove_extra_whitespaces,
        "unk 0, bos 1, eos 2": kinds[:3] == [_UNKNOWN, _CONTROL, _CONTROL],
        "no user-defined pieces": set(kinds[3:]) <= {_NORMAL, _BYTE},
    }
    missing = [name for name, holds in expected.items() if not holds]
    if missing:
        raise TokenizerError(f"expected a SentencePiece model with {', '.join(missing)}")
    return proto


def write_hf_tokenizer(model_path: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`, and a copy of the model itself.

    `transformers.AutoTokenizer.from_pretrained(folder)` then gives the ids of the SentencePiece
    model at `model_path`, with BOS in front unless `add_special_tokens=False`. Text that spells a
    special token (`<s>`) stays text. Raises TokenizerError for a model that cannot be read.
    """
    model = read_model(model_path)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        "model_max_length": 10**30,
    }
    write_atomic(folder / "tokenizer.model", model)
    write_atomic(folder / "tokenizer.json", _fast(_parse(model)).to_str().encode())
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())


def _fast(proto: Any) -> FastTokenizer:
    names = [piece.piece for piece in proto.pieces]
    vocab = {name: index for index, name in enumerate(names)}
    fast = FastTokenizer(
        BPE(
            vocab=vocab,
            merges=list(_merges(proto)),
            unk_token=names[UNK],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    dummy_prefix = proto.normalizer_spec.add_dummy_prefix
    spaces = normalizers.Replace(" ", _SPACE)
    fast.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if dummy_prefix else spaces
    )
    decoding = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence(
        [*decoding, decoders.Strip(" ", 1, 0)] if dummy_prefix else decoding
    )
    fast.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in names[: EOS + 1]]
    )
    fast.post_processor = processors.TemplateProcessing(
        single=f"{names[BOS]} $A",
        pair=f"{names[BOS]} $A {names[BOS]}:1 $B:1",
        special_tokens=[(names[BOS], BOS)],
    )
    return fast


def _merges(proto: Any) -> Iterator[tuple[str, str]]:
    """Pairs in the order in which SentencePiece prefers the pieces that they make.

    SentencePiece joins any two neighbours whose joint text is a piece, the best-scored piece first:
    so every split of a piece into two pieces is a merge of that piece's rank.
    """
    normal = [piece for piece in proto.pieces if piece.type == _NORMAL and len(piece.piece) > 1]
    usable = {piece.piece for piece in proto.pieces if piece.type == _NORMAL}
    for piece in sorted(normal, key=lambda piece: -piece.score):
        text = piece.piece
        for cut in range(len(text) - 1, 0, -1):
            if text[:cut] in usable and text[cut:] in usable:
                yield text[:cut], text[cut:]
