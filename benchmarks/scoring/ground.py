"""What is scored: seven experts and a seed, and the dev and test shards of nine domains.

Weights and text are made up: what they cost is that of real ones. The three ensembles are those of
the paper's schemes (arXiv 2502.19385): they share the moderate domain's expert.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from coordinator.scoring.measuring import Checkpoint
from protocol.blobs import ShardManifest, Split
from protocol.specs import ModelShape
from shared import model as models
from shared.blobs import BlobStore
from shared.shards import BOS_ID, write_shard

ENSEMBLES: dict[str, tuple[str, str, str]] = {
    "MHo-IHo": ("easy M", "moderate M", "difficult M"),
    "MHo-IHe": ("easy M short", "moderate M", "difficult M long"),
    "MHe-IHo": ("easy S", "moderate M", "difficult L"),
}
SEED = "seed M"
_WIDTHS = {"S": 3, "M": 4, "L": 5}
"""The paper's proportions of FFN widths."""

_NOISE = 0.05
"""How far an expert's weights are from the seed's, as a standard deviation."""


@dataclass(frozen=True)
class Size:
    """Of shards: documents of each split, and their tokens. `shape` is that of the seed."""

    shape: ModelShape
    num_domains: int
    test_documents: int
    dev_documents: int
    document_tokens: int


@dataclass(frozen=True)
class Ground:
    """Seven experts by name, the seed, each domain's shards, and the stores they lie in."""

    experts: Mapping[str, Checkpoint]
    seed: Checkpoint
    dev: Sequence[ShardManifest]
    test: Sequence[ShardManifest]
    public: BlobStore
    sealed: BlobStore

    @property
    def shards(self) -> tuple[ShardManifest, ...]:
        """All that every checkpoint is measured on."""
        return (*self.dev, *self.test)


def make_ground(folder: Path, size: Size) -> Ground:
    """Everything, in the empty folder. `size.shape.ffn_width` is width M, a multiple of 4."""
    names = sorted({name for experts in ENSEMBLES.values() for name in experts})
    public, sealed = BlobStore(folder / "public"), BlobStore(folder / "sealed")
    unit = size.shape.ffn_width // _WIDTHS["M"]
    seed = models.build(_at_width(size.shape, unit * _WIDTHS["L"]), rng_seed=0)
    source = folder / "seed.safetensors"
    models.save(seed, source)
    checkpoints = {}
    for number, name in enumerate([SEED, *names]):
        letter = name.split()[1]
        shape = _at_width(size.shape, unit * _WIDTHS[letter])
        checkpoints[name] = _checkpoint(source, shape, folder, public, number)
    seed_checkpoint = checkpoints.pop(SEED)
    return Ground(
        experts=checkpoints,
        seed=seed_checkpoint,
        dev=_shards(sealed=sealed, public=public, split="dev", size=size, folder=folder),
        test=_shards(sealed=sealed, public=public, split="test", size=size, folder=folder),
        public=public,
        sealed=sealed,
    )


def _at_width(shape: ModelShape, width: int) -> ModelShape:
    return shape.model_copy(update={"ffn_width": width})


def _checkpoint(
    source: Path, shape: ModelShape, folder: Path, store: BlobStore, number: int
) -> Checkpoint:
    """The seed narrowed to `shape`; noise makes experts of it, 0 leaves it the seed."""
    model = models.load(source, shape)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.add_(noise, alpha=_NOISE * bool(number))
    file = folder / "checkpoint.safetensors"
    models.save(model, file)
    ref = store.add_file(file)
    file.unlink()
    return Checkpoint(digest=ref.digest, path=store.path(ref.digest), shape=shape)


def _shards(
    *, public: BlobStore, sealed: BlobStore, split: Split, size: Size, folder: Path
) -> list[ShardManifest]:
    store = sealed if split == "test" else public
    count = size.test_documents if split == "test" else size.dev_documents
    found = []
    for number in range(size.num_domains):
        rng = np.random.default_rng([number, split == "test"])
        text = rng.integers(BOS_ID + 1, size.shape.vocab_size, (count, size.document_tokens))
        documents = [(np.concatenate([[BOS_ID], row]), 4 * len(row)) for row in text]
        file = folder / "shard.safetensors"
        write_shard(file, documents, vocab_size=size.shape.vocab_size)
        found.append(
            ShardManifest(
                domain=f"domain-{number}",
                split=split,
                blob=store.add_file(file),
                num_documents=count,
                num_tokens=count * (size.document_tokens + 1),
                num_bytes=4 * text.size,
                vocab_size=size.shape.vocab_size,
            )
        )
        file.unlink()
    return found
