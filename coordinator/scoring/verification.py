"""Pure: a submission and the evidence about it to accepted, rejected or inconclusive.

Evidence is measured on the gate shard, whose text no worker is given. A copy of a known checkpoint
with one changed bit is not "equal" to it: what keeps such a copy from being accepted in place of
training is the comparison on held-out text.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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

Standard = Literal["better", "any"]
"""What held-out text must say for a submission to be accepted. Checkpoints that serve a measurement
alone cannot all be better: a learning rate on trial may be too high, a probe too short to tell."""


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


def decide(
    comparisons: Sequence[Comparison], *, rng_seed: int, standard: Standard = "better"
) -> Decision:
    """Accept when every paired 99 % interval is wholly better, reject when any is wholly worse.

    By the `standard` "any" what was measured is accepted, whatever it is. The interval is of the
    mean difference in nats per token, from a bootstrap over documents. There is one comparison for
    each width that the checkpoint is to be used at. Raises ValueError when there is none.
    """
    if not comparisons:
        raise ValueError("comparisons: got none, expected one for each width")
    decisions = [_decide_one(comparison, rng_seed=rng_seed) for comparison in comparisons]
    for kind in (Rejected, Inconclusive):
        for decision in decisions:
            if isinstance(decision, kind) and standard == "better":
                return decision
    detail = "; ".join(decision.detail for decision in decisions)
    if all(isinstance(decision, Accepted) for decision in decisions):
        return Accepted(detail=detail)
    return Accepted("measured, whatever it is worth", detail)


def decide_harmless(
    comparisons: Mapping[str, Comparison], *, harm_percent: float, rng_seed: int
) -> Decision:
    """Accept what harms no domain: comparisons with the parent, by domain.

    Harm: a perplexity over `harm_percent` above the parent's. Accepted when the paired 99 %
    intervals say so for every domain, rejected when one is wholly above. Nothing here says that
    it was trained. Raises ValueError when there is no comparison.
    """
    if not comparisons:
        raise ValueError("comparisons: got none, expected one for each domain")
    margin = math.log1p(harm_percent / 100)
    decisions: dict[str, Decision] = {}
    for domain, comparison in sorted(comparisons.items()):
        shifted = replace(comparison, candidate=comparison.candidate.astype(np.float64) + margin)
        decisions[domain] = _decide_one(shifted, rng_seed=rng_seed)
    detail = "; ".join(f"{domain}: {one.detail}" for domain, one in decisions.items())
    detail = f"with the {margin:.4f} nats per token that are allowed: {detail}"
    for decision in decisions.values():
        if isinstance(decision, Rejected):
            return Rejected(
                f"more than {harm_percent:g} % worse than its parent on the run's domains", detail
            )
    for decision in decisions.values():
        if isinstance(decision, Inconclusive):
            return Inconclusive(
                f"not told to be at most {harm_percent:g} % worse than its parent on the run's "
                "domains",
                detail,
            )
    return Accepted(f"at most {harm_percent:g} % worse on the run's domains", detail)


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
