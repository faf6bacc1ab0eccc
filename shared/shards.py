"""The shard file: one split of one domain as token ids. NumPy, no torch.

A shard is a safetensors file: `tokens` U16 or U32 [N], the documents one after the other, each
beginning with BOS; `document_offsets` I64 [D+1] into the tokens; `document_bytes` I64 [D], the
UTF-8 length of each document.

What a training step reads is a pure function of the recipe's rng_seed and the step. Only raw draws
of a bit generator are used, which NumPy promises to keep across versions; the methods of
`numpy.random.Generator` carry no such promise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from protocol.specs import TrainSpec
from shared.tensorfiles import read_header, read_tensors, write_tensors

BOS_ID = 1
"""The token that begins every document, in vocabularies that a run learns; others have their own.
A shard's documents all begin with the same one."""

_FORMS = {"tokens": ("U16", "U32"), "document_offsets": ("I64",), "document_bytes": ("I64",)}
_MAX_U16_VOCAB = 65_536

Integers = npt.NDArray[np.int64]


class ShardError(ValueError):
    """A shard is damaged or does not fit; the message names the field and what was expected."""


@dataclass(frozen=True)
class Shard:
    """Documents of one split, as read-only arrays over the file."""

    tokens: npt.NDArray[np.unsignedinteger[Any]]
    document_offsets: Integers
    document_bytes: Integers

    @property
    def num_documents(self) -> int:
        """Documents in the shard."""
        return len(self.document_bytes)

    @property
    def num_tokens(self) -> int:
        """Tokens in the shard, each document's BOS among them."""
        return len(self.tokens)

    @property
    def bos_id(self) -> int:
        """The token that every document begins with."""
        return int(self.tokens[0])

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the documents: the denominator of bits per byte."""
        return int(self.document_bytes.sum())

    @classmethod
    def read(cls, path: Path, *, vocab_size: int) -> Self:
        """Maps the file. Raises TensorFileError for its form, ShardError for what it holds."""
        entries = read_header(path)
        if entries.keys() != _FORMS.keys():
            raise ShardError(
                f"{path.name}: tensors {sorted(entries)[:5]}, expected {sorted(_FORMS)}"
            )
        for name, dtypes in _FORMS.items():
            if entries[name].dtype not in dtypes or len(entries[name].shape) != 1:
                raise ShardError(
                    f"{path.name}: {name} is {entries[name].form}, expected one dimension of "
                    f"{' or '.join(dtypes)}"
                )
        shard = cls(**read_tensors(path))
        _check(shard, vocab_size)
        return shard


def write_shard(
    path: Path, documents: Sequence[tuple[npt.NDArray[Any], int]], *, vocab_size: int
) -> None:
    """Writes documents, each its token ids and its UTF-8 length, to a new shard file.

    The same documents give the same bytes. Raises ShardError for what `Shard.read` would refuse.
    """
    lengths = [len(tokens) for tokens, _ in documents]
    if not documents:
        raise ShardError("documents: none, expected at least 1")
    wide = np.concatenate([np.asarray(tokens, dtype=np.int64) for tokens, _ in documents])
    if wide.size and wide.min() < 0:
        raise ShardError(f"tokens: {int(wide.min())}, expected ids from 0 to {vocab_size - 1}")
    shard = Shard(
        tokens=wide.astype("<u4"),
        document_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
        document_bytes=np.asarray([num_bytes for _, num_bytes in documents], dtype="<i8"),
    )
    _check(shard, vocab_size)
    write_tensors(
        path,
        {
            "tokens": shard.tokens.astype("<u2" if vocab_size <= _MAX_U16_VOCAB else "<u4"),
            "document_offsets": shard.document_offsets,
            "document_bytes": shard.document_bytes,
        },
    )


def join_shards(path: Path, parts: Sequence[tuple[Shard, int]]) -> None:
    """Writes the first documents of shards, so many of each, one after another, to a new file.

    The bytes are those of `write_shard`. Tokens are copied from file to file, through one beside
    `path`, so that memory does not grow with them. Raises ShardError for shards of other dtypes.
    """
    dtypes = {shard.tokens.dtype for shard, _ in parts}
    if len(dtypes) != 1:
        raise ShardError(f"tokens: dtypes {sorted(map(str, dtypes))}, expected one")
    ends = [int(shard.document_offsets[count]) for shard, count in parts]
    lengths = [np.diff(shard.document_offsets[: count + 1]) for shard, count in parts]
    draft = path.with_name(f".{path.name}.tokens")
    tokens = np.memmap(draft, dtype=dtypes.pop(), mode="w+", shape=(sum(ends),))
    try:
        position = 0
        for (shard, _), end in zip(parts, ends, strict=True):
            tokens[position : position + end] = shard.tokens[:end]
            position += end
        write_tensors(
            path,
            {
                "tokens": tokens,
                "document_offsets": np.concatenate(
                    [[0], np.cumsum(np.concatenate(lengths))]
                ).astype("<i8"),
                "document_bytes": np.concatenate(
                    [shard.document_bytes[:count] for shard, count in parts]
                ),
            },
        )
    finally:
        draft.unlink()


def _check(shard: Shard, vocab_size: int) -> None:
    offsets = shard.document_offsets
    if shard.num_documents == 0 or len(offsets) != shard.num_documents + 1:
        raise ShardError(
            f"document_offsets: {len(offsets)} for {shard.num_documents} documents, expected one "
            f"more than documents, and a document"
        )
    if offsets[0] != 0 or offsets[-1] != shard.num_tokens or (np.diff(offsets) <= 0).any():
        raise ShardError(
            f"document_offsets: from {offsets[0]} to {offsets[-1]}, expected to rise from 0 "
            f"to {shard.num_tokens}, each above the one before"
        )
    if (shard.document_bytes < 0).any():
        raise ShardError("document_bytes: a negative length")
    largest = int(shard.tokens.max())
    if largest >= vocab_size:
        raise ShardError(f"tokens: id {largest}, expected less than vocab_size {vocab_size}")
    firsts = shard.tokens[offsets[:-1]]
    if (firsts != shard.bos_id).any():
        document = int(np.argmax(firsts != shard.bos_id))
        raise ShardError(
            f"tokens: document {document} begins with {firsts[document]}, expected BOS "
            f"{shard.bos_id} like the first"
        )


def raw_draws(rng_seed: int, purpose: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` uniform 64-bit draws that depend on the three numbers alone."""
    source = np.random.PCG64(np.random.SeedSequence([rng_seed, purpose, index]))
    return np.asarray(source.random_raw(count), dtype=np.uint64)


_ORDER = 1
"""Purpose of the draws that order an epoch."""


class Batches:
    """Training batches of a shard: the packed token stream cut into windows, shuffled each epoch.

    Windows hold sequence_length + 1 tokens and overlap by one, so that every token but the first is
    a label once an epoch. The last tokens that fill no window are not used.
    """

    def __init__(self, shard: Shard, train: TrainSpec) -> None:
        """Raises ShardError when the shard has too few tokens for one batch."""
        self._tokens = shard.tokens
        self._train = train
        self._num_windows = (shard.num_tokens - 1) // train.sequence_length
        self._epochs: dict[int, Integers] = {}
        batch = train.micro_batch * train.accumulation
        if self._num_windows < batch:
            raise ShardError(
                f"tokens: {shard.num_tokens}, expected at least "
                f"{batch * train.sequence_length + 1} for one batch of {batch} sequences of "
                f"{train.sequence_length}"
            )

    def step(self, step: int) -> Integers:
        """int64 [accumulation, micro_batch, sequence_length + 1] for the update after `step`."""
        train = self._train
        batch = train.micro_batch * train.accumulation
        positions = np.arange(step * batch, (step + 1) * batch)
        epochs = positions // self._num_windows
        windows = np.concatenate(
            [
                self._order(int(epoch))[positions[epochs == epoch] % self._num_windows]
                for epoch in np.unique(epochs)
            ]
        )
        index = windows[:, None] * train.sequence_length + np.arange(train.sequence_length + 1)
        tokens = self._tokens[index].astype(np.int64)
        return tokens.reshape(train.accumulation, train.micro_batch, train.sequence_length + 1)

    def _order(self, epoch: int) -> Integers:
        if epoch not in self._epochs:
            draws = raw_draws(self._train.rng_seed, _ORDER, epoch, self._num_windows)
            order = np.argsort(draws, kind="stable").astype(np.int64)
            self._epochs = {key: self._epochs[key] for key in self._epochs if key == epoch - 1}
            self._epochs[epoch] = order
        return self._epochs[epoch]


@dataclass(frozen=True)
class Windows:
    """Windows to score, in token order, each within one document.

    Window i reads `lengths[i]` tokens from token `starts[i]`, and its labels are the tokens one
    further on. `documents[i]` is the document it lies in.
    """

    starts: Integers
    lengths: Integers
    documents: Integers

    @property
    def num_labels(self) -> int:
        """Labels in all windows."""
        return int(self.lengths.sum())

    @property
    def label_starts(self) -> Integers:
        """Where each window begins among the labels."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def label_documents(self) -> Integers:
        """The document of each label."""
        return np.repeat(self.documents, self.lengths)


def scoring_windows(shard: Shard, length: int) -> Windows:
    """Cuts every document into windows of at most `length` labels.

    A document's BOS is input only; each of its other tokens is a label exactly once.
    """
    if length < 1:
        raise ValueError(f"length {length}: expected at least 1")
    labels = np.diff(shard.document_offsets) - 1
    counts = -(-labels // length)
    documents = np.repeat(np.arange(shard.num_documents), counts)
    position = (np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)) * length
    return Windows(
        starts=shard.document_offsets[documents] + position,
        lengths=np.minimum(length, labels[documents] - position),
        documents=documents,
    )
