"""The run's tokenizer, whichever kind it is: SentencePiece, or what a pretrained model brought.

The file state/tokenizer.model holds either a SentencePiece model (`shared.text.tokenizer`) or
a tokenizer of the `tokenizers` library as JSON, with the ids that begin and end its documents.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import processors

from protocol.values import Count, Value
from shared.files import write_atomic
from shared.text.tokenizer import (
    BOS,
    EOS,
    TokenizerError,
    open_tokenizer,
    read_model,
    write_hf_tokenizer,
)

MAX_FAST_BYTES = 64_000_000

_SAMPLE = "  def f(x):\n\treturn [x,  'naïve Ωμέγα 漢字 😀', 3.14159]\r\n\n\nDon't; won't. "
"""Text that a tokenizer must give back as it was: bits per byte mean nothing otherwise."""


class Vocabulary(Protocol):
    """From text to ids and back. Ids are below `size`; every document begins with `bos_id`."""

    @property
    def size(self) -> int:
        """How many ids there are."""

    @property
    def bos_id(self) -> int:
        """The id before a document's text, which `encode` leaves out."""

    @property
    def eos_id(self) -> int:
        """The id that ends what a model writes."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text; what spells a special token is text."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids."""

    def write_hf(self, folder: Path) -> None:
        """Write the files that `AutoTokenizer.from_pretrained` reads."""


class FastModel(Value):
    """A tokenizer as state/tokenizer.model keeps it: the text of a tokenizer.json, two ids."""

    tokenizer_json: str
    bos_id: Count
    eos_id: Count

    def to_bytes(self) -> bytes:
        """What `open_vocabulary` takes, once it was found to be usable. Raises TokenizerError."""
        _Fast(self)
        return self.model_dump_json().encode()


def open_vocabulary(model: bytes) -> Vocabulary:
    """The tokenizer whose file holds `model`. Raises TokenizerError for one that cannot be used."""
    if not model.startswith(b"{"):
        return _SentencePiece(model)
    try:
        return _Fast(FastModel.model_validate_json(model))
    except ValidationError as error:
        raise TokenizerError(f"not a tokenizer of ours: {error.error_count()} errors") from error


def read_given(path: Path, *, bos_id: int, eos_id: int) -> bytes:
    """The tokenizer in a file of a user's, as `open_vocabulary` takes it.

    A tokenizer.json says nothing of `bos_id` and `eos_id`; a SentencePiece model knows its own.
    Raises TokenizerError, which names the file, for one that cannot be read or used.
    """
    if path.suffix != ".json":
        return read_model(path)
    try:
        if path.stat().st_size > MAX_FAST_BYTES:
            raise TokenizerError(f"{path}: expected at most {MAX_FAST_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TokenizerError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path}: not UTF-8") from error
    try:
        return FastModel(tokenizer_json=text, bos_id=bos_id, eos_id=eos_id).to_bytes()
    except TokenizerError as error:
        raise TokenizerError(f"{path}: {error}") from error


class _SentencePiece:
    bos_id, eos_id = BOS, EOS

    def __init__(self, model: bytes) -> None:
        self._model = model
        self._processor: Any = open_tokenizer(model)
        self.size: int = self._processor.vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        found: list[list[int]] = self._processor.encode(list(texts), num_threads=1)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        text: str = self._processor.decode(list(ids))
        return text

    def write_hf(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tokenizer.model"
        write_atomic(path, self._model)
        write_hf_tokenizer(path, folder)


class _Fast:
    def __init__(self, model: FastModel) -> None:
        try:
            self._tokenizer = FastTokenizer.from_str(model.tokenizer_json)
        except Exception as error:  # the library raises bare exceptions
            raise TokenizerError(f"not a tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.bos_id, self.eos_id = model.bos_id, model.eos_id
        for name, token in (("bos_id", self.bos_id), ("eos_id", self.eos_id)):
            if self._tokenizer.id_to_token(token) is None:
                raise TokenizerError(f"{name} {token}: expected one of its {self.size} ids")
        if self.decode(self.encode([_SAMPLE])[0]).removeprefix(" ") != _SAMPLE.removeprefix(" "):
            raise TokenizerError("it does not give back the text that it was given")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=False)

    def write_hf(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        bos = self._tokenizer.id_to_token(self.bos_id)
        exported = FastTokenizer.from_str(self._tokenizer.to_str())
        exported.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos}:1 $B:1",
            special_tokens=[(bos, self.bos_id)],
        )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": self._tokenizer.id_to_token(self.eos_id),
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            "model_max_length": 10**30,
        }
        write_atomic(folder / "tokenizer.json", exported.to_str().encode())
        write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode())
