"""The text that mixtures are measured on: domains' shards, and pairs of domains spliced together.

Nobody trained on a text that changes its subject: what a router makes of one is part of what a
mixture is worth. A spliced document is the beginning of one domain's document and then that of
another's, behind one BOS, short enough that both lie in one window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.mixing.run import FinishedRun
from coordinator.scoring.ensembles import ShardScores
from coordinator.scoring.likelihood_cache import Labels
from protocol.blobs import Split
from protocol.digests import digest_value
from shared.shards import Shard, scoring_windows

TextRole = Literal["trained", "held-out", "spliced"]

SPLICED_DOCUMENTS = 16
"""Of each pair of domains: windows of one context, 250 of them at sixteen domains."""

_SEPARATOR = " > "


@dataclass(frozen=True)
class Text:
    """One text: its name in tables, what it is for, and the shard with the digest to cache it by.

    `name` is the domain, or `python > law` where one is spliced to another.
    """

    name: str
    role: TextRole
    digest: str
    shard: Shard

    @property
    def num_labels(self) -> int:
        """Every token but the BOS of each document."""
        return self.shard.num_tokens - self.shard.num_documents

    def scores(self, by_model: dict[str, Labels], context_length: int) -> ShardScores:
        """The text under models, by their names."""
        windows = scoring_windows(self.shard, context_length)
        return ShardScores(
            by_model=by_model,
            starts=windows.label_starts,
            documents=windows.documents,
            num_bytes=self.shard.num_bytes,
        )


def texts_of(run: FinishedRun, split: Split) -> tuple[Text, ...]:
    """The trained domains, the held-out ones, then the spliced pairs, all of one split."""
    found = [_domain_text(run, domain, split, role="trained") for domain in run.trained]
    pairs = spliced_pairs(run.trained)
    by_name = {text.name: text for text in found}
    found += [_domain_text(run, domain, split, role="held-out") for domain in run.held_out]
    found += [
        spliced_text(by_name[left], by_name[right], context_length=run.context_length)
        for left, right in pairs
    ]
    return tuple(found)


def spliced_pairs(domains: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Each domain with the next by name, the last with the first; none where there is one domain.

    Every domain is thus once what a text begins with and once what it goes over to.
    """
    names = sorted(domains)
    return tuple(pairwise([*names, names[0]])) if len(names) > 1 else ()


def spliced_text(left: Text, right: Text, *, context_length: int) -> Text:
    """The first SPLICED_DOCUMENTS of `left` that go over to `right` at half of a context."""
    half = context_length // 2
    documents = [
        splice(one, other, half=half)
        for one, other in zip(_documents(left.shard), _documents(right.shard), strict=False)
    ][:SPLICED_DOCUMENTS]
    lengths = [len(tokens) for tokens in documents]
    return Text(
        name=f"{left.name}{_SEPARATOR}{right.name}",
        role="spliced",
        digest=digest_value(
            {"spliced": [left.digest, right.digest, context_length, len(documents)]}
        ),
        shard=Shard(
            tokens=np.concatenate(documents),
            document_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype("<i8"),
            document_bytes=np.zeros(len(documents), dtype="<i8"),
        ),
    )


def shortened(text: Text, num_labels: int) -> Text:
    """The first documents of a text, up to the one with which it has so many labels."""
    labels = np.cumsum(np.diff(text.shard.document_offsets) - 1)
    count = min(len(labels), int(np.searchsorted(labels, num_labels)) + 1)
    if count == len(labels):
        return text
    shard = text.shard
    return replace(
        text,
        digest=digest_value({"beginning": [text.digest, count]}),
        shard=Shard(
            tokens=shard.tokens[: shard.document_offsets[count]],
            document_offsets=shard.document_offsets[: count + 1],
            document_bytes=shard.document_bytes[:count],
        ),
    )


def splice(
    left: NDArray[np.unsignedinteger], right: NDArray[np.unsignedinteger], *, half: int
) -> NDArray[np.unsignedinteger]:
    """At most `half` tokens of each document, behind the BOS of `left`; tokens begin with BOS."""
    return np.concatenate([left[: 1 + half], right[1 : 1 + half]])


def _documents(shard: Shard) -> list[NDArray[np.unsignedinteger]]:
    """The first documents of a shard that say anything, with their BOS."""
    spans = pairwise(shard.document_offsets.tolist())
    found = [shard.tokens[begin:end] for begin, end in spans if end - begin > 1]
    return found[:SPLICED_DOCUMENTS]


def _domain_text(run: FinishedRun, domain: str, split: Split, *, role: TextRole) -> Text:
    manifest, shard = run.shard(domain, split)
    return Text(name=domain, role=role, digest=manifest.blob.digest, shard=shard)
