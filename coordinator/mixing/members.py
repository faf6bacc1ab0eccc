"""Checkpoints of a run, and experts from elsewhere, as what mixtures are made of."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from coordinator.mixing.ingredients import open_ingredient, vocabulary_digest
from coordinator.mixing.knowing import Texts
from coordinator.mixing.run import FinishedRun, Member
from protocol.digests import digest_bytes
from shared.mixing.ingredients import Floats, Ingredient, MixingError
from shared.shards import Shard, ShardError
from shared.tensorfiles import (
    TensorFileError,
    check_file,
    model_tensors,
    read_header,
    read_tensors,
)
from shared.text.vocabulary import Vocabulary

MAX_TEXT_BYTES = 2**30

_WIDTH_PROBE = "model.layers.0.mlp.gate_proj.weight"


@dataclass(frozen=True)
class Guest:
    """An expert from elsewhere, and text of its domain, where there is any, by its digest."""

    ingredient: Ingredient
    texts: Texts


def member_ingredient(member: Member, vocabulary: str) -> Ingredient:
    """The checkpoint at the width that it is used at: the first units of a file with more.

    `vocabulary` is the digest of the run's tokenizer. Raises MixingError where the file does not
    hold a model of its shape.
    """
    path, shape = member.checkpoint.path, member.checkpoint.shape
    forms = model_tensors(shape)
    try:
        entry = read_header(path).get(_WIDTH_PROBE)
        width = entry.shape[0] if entry is not None else shape.ffn_width
        check_file(path, model_tensors(shape.model_copy(update={"ffn_width": width})))
        tensors = read_tensors(path)
    except TensorFileError as error:
        raise MixingError(
            f"the file of {member.facts.name}, {path}: {error}: put it back from a copy of the "
            "run's folder"
        ) from error

    def read(name: str) -> Floats:
        narrowed = tensors[name][tuple(slice(0, extent) for extent in forms[name][1])]
        return np.asarray(narrowed, dtype=np.float32)

    return Ingredient(
        name=member.name,
        domain=member.domain,
        shape=shape,
        forms=forms,
        read=read,
        vocabulary=vocabulary,
        origin=member.facts.name,
        files={"model.safetensors": member.checkpoint.digest},
    )


def train_texts(run: FinishedRun, member: Member) -> Texts:
    """The train shards of the domains that a member was trained on."""
    found = [run.shard(domain, "train") for domain in member.domains]
    return {manifest.blob.digest: shard for manifest, shard in found}


def open_guest(
    name: str, path: Path, *, base: Path | None, text: Path | None, vocabulary: Vocabulary
) -> Guest:
    """The expert called `name`, in a Hugging Face or PEFT directory, with text of its domain.

    An adapter is one of the model in `base`. Raises MixingError for what is neither, and for text
    that cannot be read.
    """
    if not path.is_dir():
        raise MixingError(
            f"{name}: {path} is no folder, expected a Hugging Face directory of a Llama, or a PEFT "
            "directory of a LoRA adapter"
        )
    ingredient = open_ingredient(path, name=name, base=base)
    return Guest(ingredient, {} if text is None else read_text(text, vocabulary))


def run_guest(name: str, run: FinishedRun, checkpoint: str) -> Guest:
    """A run's checkpoint as an expert called `name`, with the text that it was trained on.

    Raises MixingError for a checkpoint that the run does not have.
    """
    member = replace(run.expert(checkpoint), name=name)
    return Guest(
        member_ingredient(member, vocabulary_digest(run.vocabulary)), train_texts(run, member)
    )


def read_text(path: Path, vocabulary: Vocabulary) -> Texts:
    """A shard file, or a UTF-8 file as one document, by its digest.

    Raises MixingError where it cannot be read, or holds no text of this vocabulary.
    """
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise MixingError(f"{path}: expected at most {MAX_TEXT_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise MixingError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        return {digest_bytes(data): _as_shard(path, data, vocabulary)}
    except (ShardError, TensorFileError) as error:
        raise MixingError(f"{path}: no text of this vocabulary: {error}") from error


def _as_shard(path: Path, data: bytes, vocabulary: Vocabulary) -> Shard:
    # A safetensors file begins with the length of its header, of which the upper bytes are 0.
    if data[4:8] == b"\0\0\0\0":
        return Shard.read(path, vocab_size=vocabulary.size)
    try:
        ids = vocabulary.encode([data.decode("utf-8")])[0]
    except UnicodeDecodeError as error:
        raise MixingError(f"{path}: neither a shard nor UTF-8 text: {error}") from error
    if not ids:
        raise MixingError(f"{path}: is empty, expected text")
    return Shard(
        tokens=np.asarray([vocabulary.bos_id, *ids], dtype="<u4"),
        document_offsets=np.asarray([0, 1 + len(ids)], dtype="<i8"),
        document_bytes=np.asarray([len(data)], dtype="<i8"),
    )
