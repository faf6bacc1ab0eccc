"""What a plan reads of checkpoints that it named before. Values, no arithmetic."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from protocol.ids import Digest

DevLoss = Mapping[tuple[Digest, str], float]
"""Spec digest and domain to the mean loss of a label of the domain's dev text, in nats."""

Posteriors = Mapping[tuple[tuple[Digest, ...], str], tuple[float, ...]]
"""Members' spec digests and a domain to their mean posterior on its dev text."""


@dataclass(frozen=True)
class Measured:
    """What was measured so far of checkpoints that a plan named.

    `diverged` are specs whose training found no finite loss, however often it was tried.
    """

    dev_loss: DevLoss
    posteriors: Posteriors
    diverged: Collection[Digest] = frozenset()


NOTHING = Measured({}, {})
