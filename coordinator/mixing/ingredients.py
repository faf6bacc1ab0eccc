"""Experts from directories: a run's, anybody's Llama, or a LoRA adapter over one.

Weights come from safetensors, settings from JSON; nothing is unpickled, no code is run.
"""

import tempfile
from pathlib import Path

from coordinator.mixing.adapters import file_digest, is_adapter, read_adapter
from coordinator.pretrained.opening import open_source
from coordinator.pretrained.source import Source, SourceError
from protocol.digests import digest_bytes
from shared.mixing.ingredients import Floats, Ingredient, MixingError, Reader
from shared.tensorfiles import model_tensors
from shared.text.tokenizer import TokenizerError
from shared.text.vocabulary import Vocabulary, open_vocabulary

_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


def open_ingredient(
    path: Path, *, name: str, domain: str | None = None, base: Path | None = None
) -> Ingredient:
    """The expert `name` for text of `domain` (None: of the same name) in the directory `path`.

    That is a Hugging Face directory of a Llama, as runs export their experts, in one file or many,
    of fp32, bf16 or fp16; or a PEFT directory of a LoRA adapter, whose matrices are added to those
    of the Llama in `base` as they are read. Only headers are read here, and all bytes for their
    digests. Raises MixingError, naming the file, for what is neither, or for another base.
    """
    try:
        if not is_adapter(path):
            return _whole(path, name=name, domain=domain or name)
        if base is None:
            raise MixingError(
                f"{path}: a LoRA adapter, expected its base model, too: name it with --base"
            )
        return read_adapter(path, base, _whole(base, name=name, domain=domain or name))
    except (SourceError, TokenizerError) as error:
        raise MixingError(f"{name}: {error}") from error


def read_vocabulary(path: Path) -> Vocabulary:
    """The tokenizer of the Llama in `path`. Raises MixingError without a usable one."""
    try:
        return open_vocabulary(open_source(path).tokenizer())
    except (SourceError, TokenizerError) as error:
        raise MixingError(str(error)) from error


def vocabulary_digest(vocabulary: Vocabulary) -> str:
    """What a tokenizer is known by, in whichever form it came."""
    with tempfile.TemporaryDirectory() as folder:
        vocabulary.write_hf(Path(folder))
        return digest_bytes((Path(folder) / "tokenizer.json").read_bytes())


def _whole(path: Path, *, name: str, domain: str) -> Ingredient:
    source = open_source(path)
    shape = source.anatomy.shape
    has_tokenizer = path.is_file() or any((path / file).exists() for file in _TOKENIZERS)
    return Ingredient(
        name=name,
        domain=domain,
        shape=shape,
        forms=model_tensors(shape),
        read=_reading(source, name),
        vocabulary=_digest_of_tokenizer(source) if has_tokenizer else None,
        origin=path.resolve().name,
        files={file: file_digest(place) for file, place in source.files.items()},
    )


def _reading(source: Source, name: str) -> Reader:
    def read(tensor: str) -> Floats:
        try:
            return source.read(tensor)
        except SourceError as error:
            raise MixingError(f"{name}: {error}") from error

    return read


def _digest_of_tokenizer(source: Source) -> str:
    return vocabulary_digest(open_vocabulary(source.tokenizer()))
