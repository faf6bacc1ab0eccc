"""Prepare: the run's text to a tokenizer and shards, once. prepared.json is written last.

No more than one text, within its `max_bytes`, and its tokens are in memory at a time.
Overlap of documents that are similar but not equal is not looked for.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import sentencepiece

from coordinator.folders import RunFolders
from coordinator.runfile import GENERAL, RunFile
from coordinator.sections import Recipe, SeedRecipe, Text
from coordinator.text.documents import (
    Collection,
    Document,
    DocumentError,
    documents_of,
    split_documents,
)
from coordinator.text.prepared import Prepared, PreparedFile, PrepareError, read_prepared
from coordinator.text.sources import read_source
from coordinator.text.tokenizer import BOS, learn, open_tokenizer, read_model
from protocol.blobs import ShardManifest, Split
from shared.blobstore import BlobStore
from shared.files import write_atomic
from shared.shards import write_shard

__all__ = ["MIN_TEST_DOCUMENTS", "PrepareError", "Prepared", "prepare"]

MIN_TEST_DOCUMENTS = 30
"""Fewer, and an interval over documents says nothing."""

_PUBLIC: tuple[Split, ...] = ("train", "dev")
_BATCH = 256

Progress = Callable[[str], None]


def prepare(run: RunFile, folders: RunFolders, *, progress: Progress) -> Prepared:
    """The tokenizer and the shards of `run`, made at the first call and read at the next ones.

    Raises PrepareError when the text cannot be read, is too little, or its settings are not those
    that the shards were made with.
    """
    folders.create()
    split_key = _read_split_key(folders.split_key)
    text = _text_settings(run, split_key)
    done = read_prepared(folders.prepared)
    if done is None:
        prepared = _Preparation(run, folders, split_key, progress).make()
    else:
        _refuse_changes(folders.prepared, done.text, text)
        _refuse_missing(folders, done.prepared)
        prepared = done.prepared
    _check_tokens(run, prepared)
    if done is None:
        contents = PreparedFile(text=text, prepared=prepared)
        write_atomic(folders.prepared, contents.model_dump_json(indent=1).encode())
    return prepared


def _read_split_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except OSError as error:
        raise PrepareError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise PrepareError(f"{path}: expected 64 hexadecimal digits") from error
    if len(key) != 32:
        raise PrepareError(f"{path}: {len(key)} bytes, expected 32")
    return key


def _text_settings(run: RunFile, split_key: bytes) -> dict[str, object]:
    """What the shards depend on; a key is named by its digest."""
    domains = {name: domain.model_dump(mode="json") for name, domain in run.domains.items()}
    for settings in domains.values():
        del settings["difficulty"]
    return {
        "tokenizer": run.tokenizer.model_dump(mode="json"),
        GENERAL: run.general.model_dump(mode="json"),
        "domains": domains,
        "split_key_sha256": hashlib.sha256(split_key).hexdigest(),
    }


def _refuse_changes(path: Path, before: dict[str, object], now: dict[str, object]) -> None:
    if before == now:
        return
    old, new = dict(_flat(before)), dict(_flat(now))
    changes = [
        f"{key}: {json.dumps(old.get(key))} became {json.dumps(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    raise PrepareError(
        "the text settings are not those that the shards were made with; undo the change or start "
        f"another run ({path}):\n  " + "\n  ".join(changes)
    )


def _flat(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _flat(child, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _flat(child, f"{key}[{index}]")
    else:
        yield key, value


def _refuse_missing(folders: RunFolders, prepared: Prepared) -> None:
    blobs, sealed = BlobStore(folders.blobs), BlobStore(folders.sealed)
    missing = [
        f"{shard.domain} {shard.split}"
        for shard in prepared.shards
        if not (blobs if shard.split in _PUBLIC else sealed).has(shard.blob.digest)
    ]
    if missing:
        raise PrepareError(
            f"{folders.prepared}: the shards {', '.join(missing)} are gone; delete it to prepare "
            "again, and the ledger with it"
        )


def _check_tokens(run: RunFile, prepared: Prepared) -> None:
    recipes: dict[str, Recipe | SeedRecipe] = dict.fromkeys(run.domains, run.recipe)
    for name, recipe in {GENERAL: run.seed.recipe, **recipes}.items():
        batch = recipe.micro_batch * recipe.accumulation
        needed = batch * recipe.sequence_length + 1
        found = prepared.shard(name, "train").num_tokens
        if found < needed:
            raise PrepareError(
                f"{name}: {found} train tokens, expected at least {needed} for one batch of "
                f"{batch} sequences of {recipe.sequence_length}"
            )


class _Preparation:
    """One making of the shards: the general text first, as the tokenizer is learned from it."""

    def __init__(
        self, run: RunFile, folders: RunFolders, split_key: bytes, progress: Progress
    ) -> None:
        self._run = run
        self._folders = folders
        self._split_key = split_key
        self._blobs = BlobStore(folders.blobs)
        self._sealed = BlobStore(folders.sealed)
        self._seen: set[bytes] = set()
        self._progress = progress

    def make(self) -> Prepared:
        texts: dict[str, Text] = {GENERAL: self._run.general}
        texts |= {name: self._run.domains[name] for name in sorted(self._run.domains)}
        shards: list[ShardManifest] = []
        tokenizer: sentencepiece.SentencePieceProcessor | None = None
        for number, (name, text) in enumerate(texts.items(), start=1):
            label = f"text {number} of {len(texts)}, {name}"
            splits = self._splits(name, text, label)
            if tokenizer is None:
                self._progress(f"{label}: tokenizer")
                tokenizer = self._tokenizer(splits["train"])
            shards += [
                self._shard(tokenizer, name, split, documents, label=label)
                for split, documents in splits.items()
            ]
        model = self._blobs.add_file(self._folders.tokenizer)
        vocab_size = shards[0].vocab_size
        return Prepared(tokenizer=model, vocab_size=vocab_size, shards=tuple(shards))

    def _splits(self, name: str, text: Text, label: str) -> dict[Split, list[Document]]:
        """The documents of each split, in digest order; refused when there are too few."""
        collection = self._collect(name, text, label)
        split_key = None if name == GENERAL else self._split_key
        splits = split_documents(collection.documents, split_key=split_key)
        for split, documents in splits.items():
            needed = MIN_TEST_DOCUMENTS if split == "test" else 1
            if len(documents) < needed:
                raise PrepareError(
                    f"{name}: {len(documents)} documents for the {split} shard of "
                    f"{len(collection.documents)} in all, expected at least {needed}; "
                    f"left out: {_counts(collection.left_out)}; max_bytes {text.max_bytes}"
                )
        return splits

    def _collect(self, name: str, text: Text, label: str) -> Collection:
        collection = Collection(
            min_chars=text.min_chars,
            max_chars=text.max_chars,
            max_bytes=text.max_bytes,
            seen=self._seen,
        )
        unreadable = 0
        for source in text.sources:
            self._progress(f"{label}: reading")
            files = read_source(source, origin=self._run.origin, cache=self._folders.packages)
            for file, data in files:
                try:
                    collection.add(documents_of(source.document, data))
                except UnicodeError:
                    unreadable += 1
                except DocumentError as error:
                    raise PrepareError(f"{name}: {file}: {error}") from error
        self._seen |= {document.digest for document in collection.documents}
        left_out = _counts({**collection.left_out, "files not UTF-8": unreadable})
        self._progress(
            f"{label}: {len(collection.documents)} documents, {collection.num_bytes} bytes; "
            f"left out: {left_out}"
        )
        return collection

    def _tokenizer(self, documents: list[Document]) -> sentencepiece.SentencePieceProcessor:
        settings = self._run.tokenizer
        if settings.model is not None:
            model = read_model(self._run.origin / settings.model)
        else:
            assert settings.vocab_size is not None
            texts = (document.text for document in documents)
            model = learn(texts, vocab_size=settings.vocab_size)
        write_atomic(self._folders.tokenizer, model)
        return open_tokenizer(model)

    def _shard(
        self,
        tokenizer: sentencepiece.SentencePieceProcessor,
        name: str,
        split: Split,
        documents: list[Document],
        *,
        label: str,
    ) -> ShardManifest:
        encoded: list[tuple[npt.NDArray[np.uint32], int]] = []
        for start in range(0, len(documents), _BATCH):
            batch = documents[start : start + _BATCH]
            ids = tokenizer.encode([document.text for document in batch], num_threads=1)
            encoded += [
                (np.fromiter(chain((BOS,), row), dtype=np.uint32), document.num_bytes)
                for row, document in zip(ids, batch, strict=True)
            ]
            share = (start + len(batch)) / len(documents)
            self._progress(f"{label}: {split} tokens {share:.0%}")
        store = self._blobs if split in _PUBLIC else self._sealed
        with tempfile.TemporaryDirectory(dir=store.root) as folder:
            path = Path(folder) / f"{name}-{split}.safetensors"
            write_shard(path, encoded, vocab_size=tokenizer.vocab_size())
            blob = store.add_file(path)
        return ShardManifest(
            domain=name,
            split=split,
            blob=blob,
            num_documents=len(documents),
            num_tokens=sum(len(tokens) for tokens, _ in encoded),
            num_bytes=sum(num_bytes for _, num_bytes in encoded),
            vocab_size=tokenizer.vocab_size(),
        )


def _counts(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "none"
