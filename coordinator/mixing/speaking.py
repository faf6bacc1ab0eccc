"""Text from an expert, a mixture, or a run's posterior ensemble, and who speaks at each token."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from coordinator.mixing.ingredients import read_vocabulary
from coordinator.mixing.knowing import folder_vocabulary
from coordinator.mixing.run import FinishedRun, Member
from coordinator.pretrained.opening import open_source
from coordinator.pretrained.source import SourceError, write_own
from shared.mixing.agreement import damage_in
from shared.mixing.facts import FACTS
from shared.mixing.generation import GenerationError, PosteriorEnsemble, Sampling, choose
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.ingredients import MixingError
from shared.mixing.opening import open_mixture
from shared.model import load
from shared.text.vocabulary import Vocabulary, open_vocabulary


class Reader(Protocol):
    """What reads tokens and says what may follow."""

    @property
    def context_length(self) -> int:
        """The most tokens that it can read."""

    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities fp64 [rows, vocab] after `tokens` int64 [rows, count]."""


@dataclass(frozen=True)
class Voice:
    """A reader, the names of its experts, and each one's weight after what was read."""

    reader: Reader
    vocabulary: Vocabulary
    names: tuple[str, ...]
    weights: Callable[[], list[float]]


@dataclass(frozen=True)
class Spoken:
    """One token: its text, and who weighed most when it was chosen, and how much."""

    text: str
    expert: str
    weight: float


class MixtureReader:
    """A mixture that reads one row of text, with a KV cache."""

    def __init__(self, model: HdeeMoeForCausalLM) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._read = torch.zeros((1, 0), dtype=torch.int64)
        self.gates: list[float] = []

    @property
    def context_length(self) -> int:
        """The most tokens that it can read."""
        return int(self._model.config.max_position_embeddings)

    @torch.inference_mode()
    def read(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-probabilities fp64 [1, vocab] after `tokens` int64 [1, count].

        `gates` are then those of the last position, the mean over layers.
        """
        self._read = torch.cat([self._read, tokens], dim=1)
        out = self._model(
            input_ids=tokens,
            prefix_ids=self._read,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            output_gates=True,
        )
        self.gates = torch.stack([one[0, -1] for one in out.gates]).mean(dim=0).tolist()
        return torch.log_softmax(out.logits[:, -1].double(), dim=-1)


def open_voice(folder: Path) -> Voice:
    """The mixture or the Llama in a Hugging Face directory.

    Raises MixingError for what is neither, and for a damaged mixture.
    """
    if not folder.is_dir():
        raise MixingError(
            f"{folder}: no such folder, expected that of a mixture or of an expert, or a run file"
        )
    if (folder / FACTS).is_file():
        with damage_in(folder):
            model = open_mixture(folder)
        reader = MixtureReader(model)
        names = tuple(model.config.expert_names)
        return Voice(reader, folder_vocabulary(folder), names, lambda: reader.gates)
    ensemble = PosteriorEnsemble([_llama(folder)])
    return Voice(ensemble, read_vocabulary(folder), (folder.name,), lambda: [1.0])


def _llama(folder: Path) -> LlamaForCausalLM:
    """The model in a Hugging Face directory; nothing else that its files ask for is heeded."""
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "model.safetensors"
        try:
            source = open_source(folder)
            write_own(source, path)
        except SourceError as error:
            raise MixingError(f"{folder}: no Llama that loads: {error}") from error
        return load(path, source.anatomy.shape)


def open_ensemble(run: FinishedRun, members: Sequence[Member]) -> Voice:
    """The posterior ensemble of a run's checkpoints."""
    models = [load(one.checkpoint.path, one.checkpoint.shape) for one in members]
    ensemble = PosteriorEnsemble(models)
    return Voice(
        ensemble,
        open_vocabulary(run.folders.tokenizer.read_bytes()),
        tuple(one.name for one in members),
        lambda: ensemble.posterior[:, 0].tolist(),
    )


def speak(
    voice: Voice,
    prompt: str,
    *,
    max_new_tokens: int,
    sampling: Sampling,
    tell: Callable[[int, int], None],
) -> list[Spoken]:
    """What `voice` goes on with, until it ends the document or has said `max_new_tokens`.

    Raises GenerationError where the context does not hold it all, naming how much it does.
    """
    vocabulary = voice.vocabulary
    ids = [vocabulary.bos_id, *vocabulary.encode([prompt])[0]]
    room = voice.reader.context_length - len(ids)
    if not 1 <= max_new_tokens <= room:
        raise GenerationError(
            f"{max_new_tokens} tokens after {len(ids)} of prompt: expected from 1 to {room}, as "
            f"the context holds {voice.reader.context_length}"
        )
    generator = torch.Generator().manual_seed(sampling.rng_seed)
    unread, said, found = torch.tensor([ids]), "", []
    spoken: list[int] = []
    for number in range(max_new_tokens):
        chosen = choose(voice.reader.read(unread), sampling, generator)
        token = int(chosen[0])
        if token in (vocabulary.bos_id, vocabulary.eos_id):
            break
        weights = voice.weights()
        spoken.append(token)
        text = vocabulary.decode([*ids[1:], *spoken])[len(vocabulary.decode(ids[1:])) :]
        heaviest = max(range(len(weights)), key=weights.__getitem__)
        found.append(Spoken(text[len(said) :], voice.names[heaviest], weights[heaviest]))
        said, unread = text, chosen[:, None]
        tell(number + 1, max_new_tokens)
    return found
