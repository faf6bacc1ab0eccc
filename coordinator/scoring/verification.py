"""Pure: a submission and the evidence about it to accepted, rejected or inconclusive.

Evidence is measured on the gate shard, whose text no worker is given. A copy of a known checkpoint
with one changed bit is not "equal" to it: what keeps such a copy from being accepted in place of
training is the comparison on held-out text.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from protocol.specs import Trains
from shared.ensemble import paired_interval
from shared.tensorfiles import is_trained

CONFIDENCE = 0.99
NUM_RESAMPLES = 2000


@dataclass(frozen=True)
class Accepted:
    """The submission is wholly better than what it is compared with.

    `reason` is what a worker may read in every decision; `detail` has the figures, for the log.
    """

    reason: str = "better on held-out text"
    detail: str = ""


@dataclass(frozen=True)
class Rejected:
    """The submission is damaged, a copy, touches what its spec freezes, or is wholly worse."""

    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Inconclusive:
    """The held-out text does not tell the submission from what it is compared with: no credit."""

    reason: str
    detail: str = ""


Decision = Accepted | Rejected | Inconclusive
Baseline = Literal["its parent", "a unigram model"]


@dataclass(frozen=True)
class Comparison:
    """Log-likelihoods of the same labels under a candidate and under its baseline, in nats.

    `candidate` and `baseline` are float [labels], `documents` is the document of each label, int
    [labels]. `ffn_width` names the prefix of a nested seed that was measured.
    """

    candidate: NDArray[np.floating]
    baseline: NDArray[np.floating]
    documents: NDArray[np.integer]
    against: Baseline
    ffn_width: int


def decide(comparisons: Sequence[Comparison], *, rng_seed: int) -> Decision:
    """Accept when every paired 99 % interval is wholly better, reject when any is wholly worse.

    The interval is of the mean difference in nats per token, from a bootstrap over documents. There
    is one comparison for each width that the checkpoint is to be used at. Raises ValueError when
    there is none.
    """
    if not comparisons:
        raise ValueError("comparisons: got none, expected one for each width")
    decisions = [_decide_one(comparison, rng_seed=rng_seed) for comparison in comparisons]
    for kind in (Rejected, Inconclusive):
        for decision in decisions:
            if isinstance(decision, kind):
                return decision
    return Accepted(detail="; ".join(decision.detail for decision in decisions))


def _decide_one(comparison: Comparison, *, rng_seed: int) -> Decision:
    low, mean, high = paired_interval(
        comparison.candidate,
        comparison.baseline,
        comparison.documents,
        confidence=CONFIDENCE,
        rng_seed=rng_seed,
        num_resamples=NUM_RESAMPLES,
    )
    detail = (
        f"width {comparison.ffn_width}: {mean:+.4f} nats per token against {comparison.against}, "
        f"{CONFIDENCE:.0%} interval [{low:+.4f}, {high:+.4f}] over "
        f"{len(np.unique(comparison.documents))} documents"
    )
    if low > 0:
        return Accepted(detail=detail)
    if high < 0:
        return Rejected(f"worse than {comparison.against} on held-out text", detail)
    return Inconclusive(f"not told apart from {comparison.against} on held-out text", detail)


def find_copy(candidate: Collection[str], known: Mapping[str, str]) -> Rejected | None:
    """Refuse a submission that is equal to a known checkpoint.

    `candidate` holds the digest of its file and that of its tensors, `known` digests of files and
    of tensors (narrowed to the candidate's width where they are wider) to what they are, for the
    log.
    """
    for digest in candidate:
        if digest in known:
            return Rejected("equal to a known checkpoint", f"equal to {known[digest]}")
    return None


def find_changed_frozen(
    candidate: Mapping[str, NDArray[np.generic]],
    parent: Mapping[str, NDArray[np.generic]],
    trains: Trains,
) -> Rejected | None:
    """Refuse an expert in which a frozen tensor is not bit-equal to its parent's.

    Both map Hugging Face tensor names to arrays of equal shapes. Bits are compared, so that a zero
    of the other sign counts as a change. Mixing experts into one model depends on this.
    """
    for name in sorted(parent):
        if is_trained(trains, name):
            continue
        if candidate[name].tobytes() != parent[name].tobytes():
            return Rejected("changed a tensor that its spec freezes", f"{name} was changed")
    return None
