"""One finished run's models and mixtures on the beginnings of its texts, from the run's cache.

Models are measured on whole shards, as the run's scorer did; mixtures on the beginnings alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from coordinator.mixing.columns import Line, column_labels
from coordinator.mixing.comparing import Bench
from coordinator.mixing.contenders import checkpoint_contender
from coordinator.mixing.kitchen import Kitchen
from coordinator.mixing.outcome import Group
from coordinator.mixing.run import FinishedRun
from coordinator.mixing.texts import Text, texts_of
from coordinator.scoring.ensembles import ShardScores
from protocol.blobs import Split
from protocol.digests import digest_value
from shared.mixing.progress import silent
from shared.mixing.recipe import Recipe
from shared.shards import Shard

Labels = NDArray[np.float64]
ByText = dict[str, dict[str, Labels]]
"""Texts to columns to log-likelihoods of labels."""


class Ground:
    """The texts of one split, each cut to its first documents with `most` labels in all.

    Spliced texts are whole.
    """

    def __init__(self, run: FinishedRun, scheme: str, split: Split, *, most: int) -> None:
        whole = texts_of(run, split)
        self.run = run
        self.scheme = scheme
        self.texts = tuple(begun(text, most) for text in whole)
        self._whole = Bench(run, whole)
        self._begun = Bench(run, self.texts)

    @property
    def groups(self) -> Mapping[Group, tuple[str, ...]]:
        """The names of each group's texts."""
        return self._whole.groups

    def columns(self) -> ByText:
        """The seed, the dense baseline if there is one, and the members' ensembles."""
        members = self.run.members(self.scheme)
        seed, dense = self.run.seed, self.run.dense
        models = [seed, *([] if dense is None else [dense]), *members]
        line = Line(
            seed=seed.facts.name,
            dense=None if dense is None else dense.facts.name,
            members=tuple(one.facts.name for one in members),
        )
        contenders = [checkpoint_contender(one.facts.name, one.checkpoint) for one in models]
        scores = self._whole.scores(contenders, stage=silent, what="")
        return {
            text.name: column_labels(_cut(scores[text.name], text), line) for text in self.texts
        }

    def mixtures(self, recipes: Mapping[str, Recipe]) -> tuple[ByText, dict[str, str]]:
        """The mixtures that can be made, and why others cannot."""
        found: ByText = {text.name: {} for text in self.texts}
        refused: dict[str, str] = {}
        with Kitchen(self.run, self.run.members(self.scheme)) as kitchen:
            for name, recipe in recipes.items():
                try:
                    contender = kitchen.contender(name, recipe)
                    scores = self._begun.scores([contender], stage=silent, what="")
                except ValueError as error:
                    refused[name] = str(error)
                    continue
                for text, one in scores.items():
                    found[text][name] = np.asarray(one.by_model[name], dtype=np.float64)
        return found, refused

    def shape_of(self, text: Text) -> ShardScores:
        """Where a text's windows and documents begin, without any model."""
        return text.scores({"": np.zeros(text.num_labels)}, self.run.context_length)


def together(parts: Sequence[ByText]) -> ByText:
    """All columns of several; of those with one name the last."""
    return {
        text: {name: labels for part in parts for name, labels in part[text].items()}
        for text in parts[0]
    }


def begun(text: Text, most: int) -> Text:
    """The first documents of a text, until they have `most` tokens; a spliced one whole."""
    offsets = text.shard.document_offsets
    count = min(int(np.searchsorted(offsets[1:], most)) + 1, text.shard.num_documents)
    if text.role == "spliced" or count == text.shard.num_documents:
        return text
    shard = Shard(
        tokens=text.shard.tokens[: int(offsets[count])],
        document_offsets=offsets[: count + 1],
        document_bytes=text.shard.document_bytes[:count],
    )
    return replace(text, digest=digest_value({"begun": [text.digest, count]}), shard=shard)


def _cut(scores: ShardScores, text: Text) -> ShardScores:
    """Scores of a whole shard, of its beginning alone: windows lie in documents, in their order."""
    labels = text.num_labels
    inside = scores.starts < labels
    return ShardScores(
        by_model={name: rows[:labels] for name, rows in scores.by_model.items()},
        starts=scores.starts[inside],
        documents=scores.documents[inside],
        num_bytes=text.shard.num_bytes,
    )
