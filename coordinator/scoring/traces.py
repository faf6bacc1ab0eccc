"""Pure: how an ensemble's posterior moves over a stretch of test text, for people to look at."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from coordinator.scoring.ensembles import ShardScores
from coordinator.scoring.outcome import PosteriorTrace
from coordinator.text_sections import Difficulty
from shared.ensemble import posterior
from shared.shards import Shard, Windows

TRACE_LABELS = 128
MAX_TRACES = 3
_DIGITS = 6
_UNFINISHED = "\ufffd"
"""What a decoder writes for bytes that are no character yet."""

_CLASSES: tuple[Difficulty, ...] = ("easy", "moderate", "difficult")


def traced_domains(trained: Sequence[str], classes: Mapping[str, Difficulty]) -> list[str]:
    """The first trained domain of each class, or as many of the first that there are."""
    firsts = [
        next((name for name in trained if classes.get(name) == one), None) for one in _CLASSES
    ]
    chosen = dict.fromkeys(name for name in firsts if name is not None)
    return list({**chosen, **dict.fromkeys(trained)})[:MAX_TRACES]


def posterior_trace(
    scheme: str,
    domain: str,
    *,
    members: Sequence[str],
    scores: ShardScores,
    tokens: Sequence[str],
    begin: int,
) -> PosteriorTrace:
    """The members' weights before each of the labels that `tokens` spell, from label `begin` on.

    `begin` is the first label of a window: the posterior starts afresh there.
    """
    rows = scores.matrix(members, begin, begin + len(tokens))
    weights = posterior(rows, [0])
    return PosteriorTrace(
        scheme=scheme,
        domain=domain,
        members=tuple(members),
        tokens=tuple(tokens),
        weights=tuple(tuple(np.round(row, _DIGITS).tolist()) for row in weights),
    )


def chosen_stretch(shard: Shard, windows: Windows) -> tuple[int, list[int]]:
    """The first label of a document's beginning, and its ids: TRACE_LABELS, or fewer.

    It is the first document that is long enough within its first window, else the longest one.
    """
    begins = np.append(True, np.diff(windows.documents) > 0)
    lengths = np.where(begins, np.minimum(windows.lengths, TRACE_LABELS), 0)
    window = int(np.argmax(lengths))
    first = int(windows.starts[window]) + 1
    ids = shard.tokens[first : first + int(lengths[window])]
    return int(windows.label_starts[window]), [int(token) for token in ids]


def spelled(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> tuple[str, ...]:
    """What each of `ids` adds to the text of those before it.

    Of a character that several ids spell, the last one adds it and the others nothing.
    """
    pieces, done = [], 0
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count])
        whole = text if count == len(ids) else text.rstrip(_UNFINISHED)
        pieces.append(whole[done:])
        done = max(done, len(whole))
    return tuple(pieces)
