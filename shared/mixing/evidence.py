"""In how many windows of a domain's text each token occurs: what the prefix router knows of it.

And, in buckets, each pair of neighbouring tokens: a few of them tell domains apart that many single
tokens do not. Counts add up over texts and can be taken away again, so that an expert joins or
leaves a mixture without anything being trained. NumPy, no torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt

from shared.shards import Shard, Windows, scoring_windows

WINDOW = 256
"""Tokens in a window; a token counts once in it, however often it occurs."""

PAIRS = 32_768
"""Buckets for pairs of tokens, where pairs are counted: with a quarter of them, routing on
128-token windows of nine domains cost 0.9 % perplexity instead of 0.1 %; without any, 2.6 %."""

_FIRST, _SECOND, _PRIME = 1_000_003, 998_244_353, 2**31 - 1
_MAX_COUNT = 2**53
_CHUNK_TOKENS = 1 << 20

Integers = npt.NDArray[np.int64]
Floats32 = npt.NDArray[np.float32]


class StatisticsError(ValueError):
    """Statistics of a domain's text that cannot be; the message names the field and its value."""


@dataclass(frozen=True, eq=False)
class TokenCounts:
    """In how many of `windows` windows each token occurs: `counts` int64 [vocab].

    And each bucket of pairs: `pairs` int64 [buckets], without any where pairs are not counted.
    Raises StatisticsError for a negative count, and for one above the number of windows.
    """

    windows: int
    counts: Integers
    pairs: Integers = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not 0 <= self.windows <= _MAX_COUNT:
            raise StatisticsError(f"windows: {self.windows}, expected from 0 to {_MAX_COUNT}")
        for name, counts in (("counts", self.counts), ("pairs", self.pairs)):
            if counts.dtype != np.dtype(np.int64) or counts.ndim != 1:
                raise StatisticsError(
                    f"{name}: {counts.dtype} {counts.shape}, expected int64 of one dimension"
                )
            wrong = (counts < 0) | (counts > self.windows)
            if wrong.any():
                where = int(np.argmax(wrong))
                raise StatisticsError(
                    f"{name}: {counts[where]} windows with number {where}, expected from 0 to "
                    f"{self.windows}, which is how many there are"
                )
        if self.vocab_size == 0:
            raise StatisticsError("counts: of no token, expected those of a vocabulary")

    @property
    def vocab_size(self) -> int:
        """Tokens that are told apart."""
        return len(self.counts)

    @property
    def num_pairs(self) -> int:
        """Buckets that pairs fall into; 0 where they are not counted."""
        return len(self.pairs)

    def __add__(self, other: Self) -> Self:
        """The counts of both texts. Raises StatisticsError when they are not of the same things."""
        self._check_fits(other)
        return type(self)(
            self.windows + other.windows, self.counts + other.counts, self.pairs + other.pairs
        )

    def __sub__(self, other: Self) -> Self:
        """What is left without a text that was added. Raises StatisticsError when it was not."""
        self._check_fits(other)
        return type(self)(
            self.windows - other.windows, self.counts - other.counts, self.pairs - other.pairs
        )

    def _check_fits(self, other: Self) -> None:
        _check_alike([self, other])


def pair_buckets(first: Integers, second: Integers, num_pairs: int) -> Integers:
    """The bucket, from 0 to `num_pairs` - 1, of each token id `second` that stands behind `first`.

    What the prefix router computes at run time: mixtures that exist depend on it.
    """
    return (first * _FIRST + second * _SECOND) % _PRIME % num_pairs


def count_tokens(
    shard: Shard,
    *,
    vocab_size: int,
    num_pairs: int = 0,
    window: int = WINDOW,
    progress: Callable[[int, int], None] | None = None,
) -> TokenCounts:
    """Counts the windows of a shard that hold each token, and each of `num_pairs` buckets of pairs.

    Documents are cut into windows of at most `window` tokens from their beginning; a document's
    BOS is in none, and in no pair. A pair is in the window of its second token.
    `progress(done, total)` counts windows. Raises ValueError for a window below 1 and
    StatisticsError for a token outside of the vocabulary.
    """
    windows = scoring_windows(shard, window)
    counts = np.zeros(vocab_size, dtype=np.int64)
    pairs = np.zeros(num_pairs, dtype=np.int64)
    num_windows = len(windows.lengths)
    step = max(1, _CHUNK_TOKENS // window)
    for start in range(0, num_windows, step):
        owner, before, tokens = _tokens(shard, windows, slice(start, start + step))
        if tokens.size and tokens.max() >= vocab_size:
            raise StatisticsError(
                f"tokens: id {tokens.max()}, expected less than vocab_size {vocab_size}"
            )
        counts += _windows_with(owner, tokens, vocab_size)
        if num_pairs:
            inside = before != shard.bos_id
            buckets = pair_buckets(before[inside], tokens[inside], num_pairs)
            pairs += _windows_with(owner[inside], buckets, num_pairs)
        if progress is not None:
            progress(min(start + step, num_windows), num_windows)
    return TokenCounts(num_windows, counts, pairs)


def _tokens(shard: Shard, windows: Windows, chosen: slice) -> tuple[Integers, Integers, Integers]:
    """Of every token in the chosen windows: its window, the token before it, and itself."""
    lengths = windows.lengths[chosen]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    first = np.repeat(windows.starts[chosen] - (np.cumsum(lengths) - lengths), lengths)
    before = first + np.arange(len(owner))
    return owner, shard.tokens[before].astype(np.int64), shard.tokens[before + 1].astype(np.int64)


def _windows_with(owner: Integers, things: Integers, count: int) -> Integers:
    """In how many windows each of `count` things occurs; `owner` is the window of each."""
    distinct = np.unique(owner * count + things)
    return np.bincount(distinct % count, minlength=count).astype(np.int64)


def log_likelihood_table(counts: Sequence[TokenCounts], *, smoothing: float) -> Floats32:
    """log p(token | domain) in nats, float32 [vocab + buckets, domains].

    Of a domain's counts, each raised by `smoothing`, a token's share; and behind the tokens the
    buckets of pairs, a distribution of their own. Raises ValueError for no domain, for smoothing
    that is not above 0, and StatisticsError where domains do not count the same things.
    """
    if not counts:
        raise ValueError("counts: none, expected at least those of one domain")
    if not 0 < smoothing < np.inf:
        raise ValueError(f"smoothing {smoothing}: expected above 0")
    _check_alike(counts)
    parts = [[one.counts for one in counts], [one.pairs for one in counts]]
    raised = [np.stack(part, axis=1) + float(smoothing) for part in parts]
    return np.concatenate([np.log(part / part.sum(axis=0)) for part in raised if part.size]).astype(
        np.float32
    )


def _check_alike(counts: Sequence[TokenCounts]) -> None:
    for what, sizes in (
        ("counts", {one.vocab_size for one in counts}),
        ("pairs", {one.num_pairs for one in counts}),
    ):
        if len(sizes) > 1:
            raise StatisticsError(f"{what}: of {sorted(sizes)} in different texts, expected one")
