"""A train shard made of the documents of others, in given shares of tokens."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.text.prepared import Prepared
from protocol.blobs import ShardManifest
from shared.blobs import BlobStore
from shared.shards import Shard, join_shards


@dataclass(frozen=True)
class Blend:
    """A text made of others: `shares` maps a domain to its share of the tokens; they sum to 1.

    `num_tokens` are about as many as a training on it reads.
    """

    name: str
    shares: Mapping[str, float]
    num_tokens: int


def make_blend(blend: Blend, prepared: Prepared, store: BlobStore) -> ShardManifest:
    """Write the blend's train shard into `store`, at least as large as its scarcest text allows.

    Each text gives whole documents from its beginning, whose order is that of their digests, up to
    the one that reaches its share. Where a training reads more than the scarcest text allows, texts
    that end begin again: each is then read as often as it would be alone, and a plentiful text is
    not cut short for a scarce one. The same shards give the same bytes. Raises BlobMissing when a
    domain's train shard is not in `store`.
    """
    shards = {domain: _train_shard(prepared, store, domain) for domain in sorted(blend.shares)}
    sizes = [shard.num_tokens / blend.shares[domain] for domain, shard in shards.items()]
    total = max(min(sizes), min(blend.num_tokens, max(sizes)))
    parts: list[tuple[Shard, int]] = []
    for domain, shard in shards.items():
        times, left = divmod(round(total * blend.shares[domain]), shard.num_tokens)
        parts += [(shard, shard.num_documents)] * times
        if left or not times:
            count = int(np.searchsorted(shard.document_offsets[1:], left)) + 1
            parts.append((shard, count))
    with tempfile.TemporaryDirectory(dir=store.root) as folder:
        path = Path(folder) / "blend.safetensors"
        join_shards(path, parts)
        blob = store.add_file(path)
    return ShardManifest(
        domain=blend.name,
        split="train",
        blob=blob,
        num_documents=sum(count for _, count in parts),
        num_tokens=sum(int(shard.document_offsets[count]) for shard, count in parts),
        num_bytes=sum(int(shard.document_bytes[:count].sum()) for shard, count in parts),
        vocab_size=prepared.vocab_size,
    )


def _train_shard(prepared: Prepared, store: BlobStore, domain: str) -> Shard:
    manifest = prepared.shard(domain, "train")
    return Shard.read(store.path(manifest.blob.digest), vocab_size=manifest.vocab_size)
