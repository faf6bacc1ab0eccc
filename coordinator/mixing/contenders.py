"""Log-likelihoods of texts under checkpoints and mixtures; what was computed once is kept.

The cache is the run's own: what its scorer measured costs nothing here. Entries on test text are as
secret as the text, and lie under the sealed folder with the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from coordinator.folders import RunFolders
from coordinator.mixing.texts import Text
from coordinator.scoring.likelihood_cache import CacheKey, Labels, LikelihoodCache
from coordinator.scoring.measuring import BATCH_LABELS, Checkpoint, floored
from protocol.digests import digest_value
from shared.averaging import Source, average_files
from shared.likelihood import label_log_likelihoods
from shared.mixing.progress import Tell
from shared.model import load
from shared.shards import Shard


class Scorer(Protocol):
    """A model in memory, ready to score shards."""

    def __call__(
        self, shard: Shard, *, length: int, batch: int, progress: Tell | None = None
    ) -> Labels:
        """log p of each label, in nats, float32 [labels], in windows of at most `length`.

        `progress` counts windows.
        """


@dataclass(frozen=True)
class Contender:
    """Something that can be measured: what it is called, what its measurements are kept under.

    `open` loads the model; it is let go as soon as its texts are measured.
    """

    name: str
    digest: str
    ffn_width: int
    open: Callable[[], Scorer]


def checkpoint_contender(name: str, checkpoint: Checkpoint) -> Contender:
    """A Llama of the run."""
    return Contender(
        name=name,
        digest=checkpoint.digest,
        ffn_width=checkpoint.shape.ffn_width,
        open=partial(_open_checkpoint, checkpoint),
    )


def average_contender(name: str, checkpoints: Sequence[Checkpoint], folder: Path) -> Contender:
    """The mean of checkpoints' weights in equal shares; its file is made in `folder` and removed.

    It is known by what it is made of, as in the run's own averages.
    """
    parts = sorted(checkpoints, key=lambda one: (one.digest, one.shape.ffn_width))
    share = 1 / len(parts)
    digest = digest_value({"average": [[one.digest, one.shape.ffn_width, share] for one in parts]})
    widest = max(parts, key=lambda one: one.shape.ffn_width)
    path = folder / f"{digest}.safetensors"

    def open_average() -> Scorer:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            average_files([Source(one.path, share) for one in parts], path)
            return _open_checkpoint(Checkpoint(digest=digest, path=path, shape=widest.shape))
        finally:
            path.unlink(missing_ok=True)

    return Contender(name, digest, widest.shape.ffn_width, open_average)


class Measuring:
    """Measures contenders on texts, one model in memory at a time."""

    def __init__(self, folders: RunFolders, *, context_length: int) -> None:
        self._cache = LikelihoodCache(folders.sealed / "likelihoods")
        self._context_length = context_length

    def num_missing(self, contenders: Sequence[Contender], texts: Sequence[Text]) -> int:
        """Labels that are to be computed, over all contenders and texts."""
        return sum(text.num_labels for one in contenders for text in self._missing(one, texts))

    def measure(
        self, contender: Contender, texts: Sequence[Text], *, advance: Callable[[int], None]
    ) -> dict[str, Labels]:
        """Log-likelihoods of each text's labels by its name, float32, in nats.

        `advance` is given how many labels were computed since it was called. Raises TensorFileError
        where a file does not fit its shape.
        """
        wanted = self._missing(contender, texts)
        if wanted:
            scorer = contender.open()
            for text in wanted:
                labels = text.num_labels
                computed = scorer(
                    text.shard,
                    length=self._context_length,
                    batch=max(1, BATCH_LABELS // self._context_length),
                    progress=_in_labels(labels, advance),
                )
                self._cache.put(self._key(contender, text), floored(computed), num_labels=labels)
        return {text.name: self._stored(contender, text) for text in texts}

    def _missing(self, contender: Contender, texts: Sequence[Text]) -> list[Text]:
        return [
            text
            for text in texts
            if self._cache.find(self._key(contender, text), num_labels=text.num_labels) is None
        ]

    def _stored(self, contender: Contender, text: Text) -> Labels:
        found = self._cache.find(self._key(contender, text), num_labels=text.num_labels)
        if found is None:
            raise OSError(f"{contender.name} on {text.name}: was stored and cannot be read back")
        return found

    def _key(self, contender: Contender, text: Text) -> CacheKey:
        return CacheKey(
            checkpoint=contender.digest,
            ffn_width=contender.ffn_width,
            shard=text.digest,
            context_length=self._context_length,
        )


def _in_labels(labels: int, advance: Callable[[int], None]) -> Tell:
    """Tells `advance` of labels, as many as are those of a text, what is told in windows."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        told, before = labels * done // total, told
        advance(told - before)

    return tell


def _open_checkpoint(checkpoint: Checkpoint) -> Scorer:
    return partial(label_log_likelihoods, load(checkpoint.path, checkpoint.shape))
