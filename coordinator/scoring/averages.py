"""Measures models whose weights are the mean of others', which exist for as long as that takes.

A mean is known by what it is made of: files, widths and shares. Its log-likelihoods are kept in the
cache under that name, so that its file is made once and again only when the cache has lost them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from coordinator.scoring.ensembles import ShardScores, mean_posterior
from coordinator.scoring.likelihood_cache import Labels
from coordinator.scoring.measuring import Checkpoint, Measurer
from coordinator.scoring.outcome import WEIGHTS_BY_POSTERIOR, WEIGHTS_UNIFORM
from coordinator.scoring.pulse import Task
from protocol.blobs import ShardManifest
from protocol.digests import digest_value
from shared.averaging import Source, average_files


class WeightAverages:
    """Makes means in a folder of its own, one at a time."""

    def __init__(self, folder: Path, measurer: Measurer) -> None:
        """What a process that was killed left in `folder` is removed."""
        self._folder = folder
        self._measurer = measurer
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            path.unlink()

    def measure(
        self,
        shares: Mapping[Checkpoint, float],
        manifests: Sequence[ShardManifest],
        *,
        task: Task,
    ) -> list[Labels]:
        """Log-likelihoods of each shard's labels, as `Measurer.measure` has them.

        Checkpoints without a share do not count. Raises TensorFileError when their files do not fit
        each other.
        """
        parts = sorted(
            ((one, share) for one, share in shares.items() if share > 0),
            key=lambda part: (part[0].digest, part[0].shape.ffn_width),
        )
        name = digest_value(
            {"average": [[one.digest, one.shape.ffn_width, share] for one, share in parts]}
        )
        widest = max((one for one, _ in parts), key=lambda one: one.shape.ffn_width)
        mean = Checkpoint(
            digest=name, path=self._folder / f"{name}.safetensors", shape=widest.shape
        )
        if self._measurer.is_measured(mean, manifests):
            return self._measurer.measure(mean, manifests, task=task)
        try:
            average_files([Source(one.path, share) for one, share in parts], mean.path)
            return self._measurer.measure(mean, manifests, task=task)
        finally:
            mean.path.unlink(missing_ok=True)


class SchemeAverages:
    """For each scheme the mean of its members' weights, where there are several members."""

    def __init__(
        self, averages: WeightAverages, members: Mapping[str, Mapping[str, Checkpoint]]
    ) -> None:
        """`members` maps schemes to names to checkpoints."""
        self._averages = averages
        self._members = {scheme: some for scheme, some in members.items() if len(some) > 1}

    def prepare(self, tests: Sequence[ShardManifest], *, task: Task) -> None:
        """Measure the means of equal shares on all of `tests`, so that each is made once."""
        for members in self._members.values():
            self._averages.measure(_equal(members), tests, task=task)

    def on(
        self, dev: ShardScores, test: ShardManifest, *, task: Task
    ) -> dict[str, dict[str, Labels]]:
        """Scheme to mode to the log-likelihoods of the test text's labels.

        The shares are equal, or the members' mean posterior on the domain's dev text.
        """
        found = {}
        for scheme, members in self._members.items():
            weights = mean_posterior(list(members), dev)
            weighted = {members[name]: weight for name, weight in weights.items()}
            modes = {WEIGHTS_UNIFORM: _equal(members), WEIGHTS_BY_POSTERIOR: weighted}
            found[scheme] = {
                mode: self._averages.measure(shares, [test], task=task)[0]
                for mode, shares in modes.items()
            }
        return found


def _equal(members: Mapping[str, Checkpoint]) -> dict[Checkpoint, float]:
    return {checkpoint: 1 / len(members) for checkpoint in members.values()}
