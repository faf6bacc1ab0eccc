"""How much of what is held out can also be read elsewhere: shared runs of 13 words.

Thirteen words, as in the usual check of contamination (Brown et al., arXiv 2005.14165): lower-cased
runs of letters and digits, punctuation left out. Every held-out shard is looked up in every train
shard. Exact for shards up to their equal share of MAX_GRAMS runs; a larger one is represented by
whole documents from its start, which are in the order of their digests, and so by a sample.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.blobs import Split
from protocol.values import Items, Value

RUN_WORDS = 13
MAX_GRAMS = 4_000_000
"""Of all held-out shards together, at some 40 bytes each in memory while they are sorted. Train
shards are read in small batches."""

HIGH_SHARE = 0.05
"""A share of shared runs above which a held-out shard says little of what is new."""

_WORD = re.compile(r"[^\W_]+")
_MULTIPLIER = 0x9E3779B97F4A7C15
_BATCH_BYTES = 4_000_000

Texts = Callable[[], Iterable[str]]
"""Reads a shard's documents, one at a time, in their order."""
Grams = npt.NDArray[np.uint64]


class Overlap(Value):
    """One held-out shard against one train shard. Shares are of the held-out shard's `measured`.

    `runs`: runs of 13 words, repeated ones counted again; `documents`: those with at least one run
    that the train shard has, too.
    """

    domain: str
    split: Split
    train: str
    share_of_runs: float
    share_of_documents: float


class Measured(Value):
    """How much of a held-out shard was looked up; all of it where `documents` is `of_documents`."""

    domain: str
    split: Split
    documents: int
    of_documents: int
    runs: int


class OverlapReport(Value):
    """The contents of overlap.json."""

    run_words: int = RUN_WORDS
    high_share: float = HIGH_SHARE
    measured: Items[Measured]
    overlaps: Items[Overlap]

    def high(self) -> list[Overlap]:
        """What is above `high_share`, the highest first."""
        found = [one for one in self.overlaps if one.share_of_runs > self.high_share]
        return sorted(found, key=lambda one: -one.share_of_runs)


def runs_of(text: str) -> Grams:
    """A 64-bit digest for each run of 13 words of `text`, in order; comparable in this process.

    Python's string hashes change from process to process, so digests must not be stored.
    """
    words = [hash(word) for word in _WORD.findall(text.lower())]
    if len(words) < RUN_WORDS:
        return np.empty(0, dtype=np.uint64)
    values = np.array(words, dtype=np.int64).view(np.uint64)
    count = len(words) - RUN_WORDS + 1
    runs = np.zeros(count, dtype=np.uint64)
    for place in range(RUN_WORDS):
        runs = runs * np.uint64(_MULTIPLIER) + values[place : place + count]
    return runs


@dataclass
class _Probe:
    """A held-out shard's runs: digests, the document of each, and where they lie in the index."""

    domain: str
    split: Split
    documents: npt.NDArray[np.int64]
    places: npt.NDArray[np.int64]
    num_documents: int
    of_documents: int


def measure(
    held_out: Mapping[tuple[str, Split], Texts],
    train: Mapping[str, Texts],
    *,
    max_grams: int = MAX_GRAMS,
    told: Callable[[str], None] = lambda _: None,
) -> OverlapReport:
    """Every held-out shard against every train shard. `told` is given the name of each one read."""
    probes, index = _probes(held_out, max_grams // max(1, len(held_out)))
    overlaps = []
    for name, texts in train.items():
        told(name)
        found = _found_in(index, texts())
        overlaps += [_overlap(probe, name, found) for probe in probes]
    measured = tuple(
        Measured(
            domain=probe.domain,
            split=probe.split,
            documents=probe.num_documents,
            of_documents=probe.of_documents,
            runs=len(probe.places),
        )
        for probe in probes
    )
    return OverlapReport(measured=measured, overlaps=tuple(overlaps))


def _probes(held_out: Mapping[tuple[str, Split], Texts], limit: int) -> tuple[list[_Probe], Grams]:
    """The held-out shards' runs, and the sorted index of all that differ."""
    sampled = {key: _sample(texts(), limit) for key, texts in held_out.items()}
    runs = [one for grams, _ in sampled.values() for one in grams]
    index = np.unique(np.concatenate(runs)) if runs else np.empty(0, dtype=np.uint64)
    probes = []
    for (domain, split), (grams, of_documents) in sampled.items():
        counts = [len(one) for one in grams]
        joined = np.concatenate(grams) if grams else np.empty(0, dtype=np.uint64)
        probes.append(
            _Probe(
                domain=domain,
                split=split,
                documents=np.repeat(np.arange(len(grams)), counts),
                places=np.searchsorted(index, joined),
                num_documents=len(grams),
                of_documents=of_documents,
            )
        )
    return probes, index


def _sample(texts: Iterable[str], limit: int) -> tuple[list[Grams], int]:
    """The runs of the first documents, up to `limit` runs; and how many documents there are."""
    grams: list[Grams] = []
    total = documents = 0
    for text in texts:
        documents += 1
        if total < limit:
            grams.append(runs_of(text))
            total += len(grams[-1])
    return grams, documents


def _found_in(index: Grams, texts: Iterable[str]) -> npt.NDArray[np.bool_]:
    """Which runs of `index` some text has."""
    found = np.zeros(len(index), dtype=np.bool_)
    if not len(index):
        return found
    for runs in _batches(texts):
        places = np.searchsorted(index, runs)
        places[places == len(index)] = 0
        found[places[index[places] == runs]] = True
    return found


def _batches(texts: Iterable[str]) -> Iterator[Grams]:
    held: list[Grams] = []
    num_bytes = 0
    for text in texts:
        held.append(runs_of(text))
        num_bytes += held[-1].nbytes
        if num_bytes > _BATCH_BYTES:
            yield np.unique(np.concatenate(held))
            held, num_bytes = [], 0
    if held:
        yield np.unique(np.concatenate(held))


def _overlap(probe: _Probe, train: str, found: npt.NDArray[np.bool_]) -> Overlap:
    hits = found[probe.places]
    dirty = len(np.unique(probe.documents[hits]))
    return Overlap(
        domain=probe.domain,
        split=probe.split,
        train=train,
        share_of_runs=float(hits.mean()) if len(hits) else 0.0,
        share_of_documents=dirty / probe.num_documents if probe.num_documents else 0.0,
    )


def lines_of(report: OverlapReport) -> list[str]:
    """The report for people: each test shard against its own train shard, and against the others.

    Then a warning for each pair above the level, with the worst of its held-out splits.
    """
    lines = [
        f"shared runs of {report.run_words} words: share of the test shard's runs (documents) that "
        "train text has, too",
        f"{'domain':<24}{'own train shard':>18}{'another shard, at most':>26}  of",
    ]
    lines += [_row(report, shard.domain) for shard in report.measured if shard.split == "test"]
    worst: dict[tuple[str, str], Overlap] = {}
    for one in report.high():
        worst.setdefault((one.domain, one.train), one)
    lines += [
        f"WARNING: {one.share_of_runs:.1%} of the runs of {one.domain} {one.split} stand in "
        f"{one.train} train (above {report.high_share:.0%}): what a model scores there is "
        "partly memory"
        for one in worst.values()
    ]
    return lines


def _row(report: OverlapReport, domain: str) -> str:
    test = [one for one in report.overlaps if (one.domain, one.split) == (domain, "test")]
    own = next(one for one in test if one.train == domain)
    others = [one for one in test if one.train != domain]
    worst = max(others, key=lambda one: one.share_of_runs, default=None)
    shown = "" if worst is None else _shares(worst)
    return f"{domain:<24}{_shares(own):>18}{shown:>26}  {worst.train if worst else ''}".rstrip()


def _shares(one: Overlap) -> str:
    return f"{one.share_of_runs:.2%} ({one.share_of_documents:.1%})"
