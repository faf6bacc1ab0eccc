"""Who is compared: each builds the same model, then makes the steps that are asked for.

ours      worker.trainer as a worker runs it: its batches from the shard file, its loss and Adam
trainer   transformers.Trainer over LlamaForCausalLM, set as a user would for speed: fused Adam,
          SDPA, nothing logged, evaluated or saved, no progress bar, no worker processes
loop      a dozen lines of PyTorch over the same LlamaForCausalLM: fused Adam, its own loss
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from benchmarks.training.work import SCHEDULE_STEPS, windows
from shared import model as models
from shared.training.assignment import TrainerAssignment
from worker.trainer import loop


class Orders(Protocol):
    """Who asks for steps."""

    def next(self) -> int:
        """How many steps to make now; 0: no more."""

    def done(self, loss: float) -> None:
        """They are made; `loss` is their mean."""


def ours(assignment: TrainerAssignment, orders: Orders, num_steps: int) -> None:
    """worker.trainer. It reads its batches as it goes, and needs no `num_steps`."""
    loop.prepare_torch(assignment.device, assignment.num_threads)
    stepper, step = loop.Stepper(loop.load(assignment)), 0
    while (count := orders.next()) and step + count <= num_steps:
        orders.done(sum(stepper.step(step + index) for index in range(count)) / count)
        step += count


def by_hand(assignment: TrainerAssignment, orders: Orders, num_steps: int) -> None:
    """The loop that one would write."""
    train = assignment.spec.train
    model: nn.Module = plain_model(assignment)
    adam = torch.optim.Adam(model.parameters(), lr=train.peak_learning_rate, fused=True)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(adam, SCHEDULE_STEPS)
    forward = torch.compile(model) if train.compile else model
    batches = iter(windows(assignment, num_steps).split(train.micro_batch))
    while count := orders.next():
        total = torch.zeros(())
        for _ in range(count):
            tokens = next(batches)
            labels = tokens[:, 1:].contiguous()
            loss = forward(
                input_ids=tokens[:, :-1], labels=labels, shift_labels=labels, use_cache=False
            ).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
            adam.step()
            cosine.step()
            adam.zero_grad()
            total += loss.detach()
        orders.done(float(total) / count)


Side = Callable[[TrainerAssignment, Orders, int], None]
TITLES = {
    "ours": "ours: worker.trainer",
    "trainer": "Hugging Face's Trainer",
    "loop": "a loop by hand",
}


def side(name: str) -> Side:
    """The one of that name, from TITLES."""
    if name == "trainer":
        from benchmarks.training.hugging_face import hugging_face  # noqa: PLC0415  # takes seconds

        return hugging_face
    return {"ours": ours, "loop": by_hand}[name]


def plain_model(assignment: TrainerAssignment) -> LlamaForCausalLM:
    """Hugging Face's own model with the weights that ours begins with."""
    spec = assignment.spec
    model = LlamaForCausalLM(models.llama_config(spec.shape))
    model.load_state_dict(models.build(spec.shape, rng_seed=spec.train.rng_seed).state_dict())
    return model.train()  # type: ignore[no-any-return]  # wraps hide self
