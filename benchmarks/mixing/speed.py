"""Generation: a mixture routed by the prefix to one expert, beside the ensemble of its experts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.mixing.models import Experts, make_experts, prompt_of
from benchmarks.paired import Ratio, paired_ratio, turns
from protocol.specs import ModelShape
from shared.mixing.generation import PosteriorEnsemble, generate

GOALS = {3: 2.0, 9: 4.0}
"""Least that a mixture of so many experts must generate, in tokens a second of the ensemble's."""

MIXTURE, ENSEMBLE = "mixture", "ensemble"
_RNG_SEED = 1


class BenchmarkError(Exception):
    """Both sides did not do the same work."""


@dataclass(frozen=True)
class Text:
    """What is generated in each turn: so many rows, tokens of prompt, and new tokens."""

    rows: int
    prompt: int
    new: int


@dataclass(frozen=True)
class Generation:
    """CPU seconds of every turn, and tokens a second of the mixture over those of the ensemble."""

    experts: int
    mixture: tuple[float, ...]
    ensemble: tuple[float, ...]
    ratio: Ratio
    text: Text

    @property
    def goal(self) -> float | None:
        """The least ratio; None where no goal is set for so many experts."""
        return GOALS.get(self.experts)


def measure_generation(
    shape: ModelShape,
    counts: Sequence[int],
    *,
    text: Text,
    rounds: int,
    trained: str,
    say: Callable[[str], None],
) -> list[Generation]:
    """Greedy generation with each number of experts, both sides in turns in this process.

    The prompt of a turn is of one domain, that of the next of the next one. The prompt's own pass
    counts, too. Raises BenchmarkError where an expert alone generates something else as a mixture
    that is forced to it.
    """
    found = []
    for count in counts:
        experts = make_experts(shape, count, trained=trained)
        _check(experts, text, shape.vocab_size)
        seconds: dict[str, list[float]] = {MIXTURE: [], ENSEMBLE: []}
        sides = {MIXTURE: _by_mixture, ENSEMBLE: _by_ensemble}
        for number, order in enumerate(turns(list(sides), rounds + 1, rng_seed=_RNG_SEED)):
            prompt = _prompt(number % count, count, text, shape.vocab_size)
            for side in order:
                began = time.process_time()
                sides[side](experts, prompt, text.new)
                seconds[side].append(time.process_time() - began)
        # The first turn warms up.
        mixture, ensemble = seconds[MIXTURE][1:], seconds[ENSEMBLE][1:]
        found.append(
            Generation(
                experts=count,
                mixture=tuple(mixture),
                ensemble=tuple(ensemble),
                ratio=paired_ratio(ensemble, mixture),
                text=text,
            )
        )
        say(f"{count} experts: {rounds} rounds are over, {found[-1].ratio}")
    return found


def _by_mixture(experts: Experts, prompt: torch.Tensor, new: int) -> torch.Tensor:
    """As its users call it."""
    with torch.inference_mode():
        made = experts.mixture.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    assert isinstance(made, torch.Tensor)
    return made


def _by_ensemble(experts: Experts, prompt: torch.Tensor, new: int) -> torch.Tensor:
    return generate(PosteriorEnsemble(experts.members), prompt, max_new_tokens=new)


def _check(experts: Experts, text: Text, vocab_size: int) -> None:
    """A text that one expert alone reads must come out of the mixture as that expert has it."""
    count = len(experts.members)
    for domain in (0, count - 1):
        prompt = _prompt(domain, count, text, vocab_size)
        with torch.inference_mode():
            gates = experts.mixture.forced(domain, like=prompt)
            logits = experts.mixture(input_ids=prompt, gates=gates).logits
            expected = experts.members[domain](input_ids=prompt).logits
        difference = float((logits - expected).abs().max() / expected.abs().max())
        if not difference < 1e-4:
            raise BenchmarkError(
                f"expert {domain} of {count}: logits differ by {difference:.1e} of the largest; "
                "the mixture is not made of these experts"
            )


def _prompt(domain: int, count: int, text: Text, vocab_size: int) -> torch.Tensor:
    return prompt_of(domain, count, rows=text.rows, length=text.prompt, vocab_size=vocab_size)
