"""The training of part of a mixture: what its steps compute, its checkpoints, its result."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from protocol.capability import Device
from protocol.digests import digest_bytes, digest_value
from protocol.manifests import TrainerState
from protocol.specs import TrainSpec
from shared.blobs import piece_list_of
from shared.files import write_atomic
from shared.mixing.facts import Tuning
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.hub.modeling_hdee_moe import HdeeMoeForCausalLM
from shared.mixing.ingredients import MixingError
from shared.mixing.opening import open_mixture, read_config
from shared.mixing.tuning import TRAINED, TUNING, check_trainable, is_trained
from shared.mixing.writing import WEIGHTS
from shared.shards import Batches, Shard
from shared.sizing import LOGIT_CHUNK
from shared.tensorfiles import TensorForm, check_file, check_finite, read_tensors, write_tensors
from shared.training.assignment import BadInput, MixtureAssignment, MixtureTrains, RouterLosses
from worker.trainer import checkpoint as checkpoints
from worker.trainer.loss import cross_entropy
from worker.trainer.mixture_optim import MixtureOptimizer, state_tensors
from worker.trainer.trainable import Loss

CONFIG = "config.json"


@dataclass(frozen=True)
class Origin:
    """Digests of what a training begins from: the mixture's weights and configuration, the text."""

    mixture: str
    config: str
    shard: str


@dataclass(frozen=True)
class MixtureTraining:
    """The training of part of a mixture, ready for the update after `state.step`."""

    assignment: MixtureAssignment
    losses: RouterLosses
    origin: Origin
    model: HdeeMoeForCausalLM
    optimizer: MixtureOptimizer
    batches: Batches
    state: TrainerState

    @property
    def train(self) -> TrainSpec:
        """The recipe."""
        return self.assignment.train

    @property
    def device(self) -> Device:
        """Where it computes."""
        return self.assignment.device

    @property
    def resume(self) -> Path | None:
        """The checkpoint that it goes on from."""
        return None if self.assignment.resume is None else Path(self.assignment.resume)

    def loss(self) -> Loss:
        """Cross-entropy, whose value is told; the router's losses are descended on, too."""
        model = self.model

        def of(micro_batch: torch.Tensor, _step: int) -> torch.Tensor:
            made = model.model(input_ids=micro_batch[:, :-1], use_cache=False)
            predicted = _cross_entropy(
                model,
                made.last_hidden_state.flatten(0, 1),
                made.decisions[0][1].flatten(0, 1),
                micro_batch[:, 1:].flatten(),
            )
            router = model.router_loss(made.decisions)
            return predicted + (router - router.detach())

        return of

    def write_checkpoint(self, folder: Path) -> None:
        """Writes the trained weights and the optimizer's state."""
        write_tensors(folder / TRAINED, self._arrays())
        checkpoints.write_moments(self.optimizer.tensors(), folder)

    def write_result(self, folder: Path, state: TrainerState) -> Path:
        """Writes the trained weights and what they were trained on; the file of the former."""
        result = folder / "trained"
        result.mkdir(parents=True, exist_ok=True)
        (result / TUNING).unlink(missing_ok=True)
        write_tensors(result / TRAINED, self._arrays())
        assert state.loss is not None, "an assignment has at least one step"
        tuning = Tuning(
            mixture=self.origin.mixture,
            shard=self.origin.shard,
            trains=self.assignment.trains,
            losses=self.losses,
            train=self.train,
            tokens=state.step * self.train.tokens_per_step,
            train_seconds=state.train_seconds,
            loss=state.loss,
            inexact_from=state.inexact_from,
        )
        write_atomic(result / TUNING, tuning.model_dump_json(indent=1).encode())
        return result / TRAINED

    def _arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        return {
            name: weight.detach().to("cpu", torch.float32).contiguous().numpy()
            for name, weight in self.optimizer.weights.items()
        }


def load(assignment: MixtureAssignment) -> MixtureTraining:
    """Reads and checks everything that the assignment names.

    Raises OSError, BadInput, ShardError or TensorFileError.
    """
    folder, text = Path(assignment.mixture), Path(assignment.shard)
    config = _config(folder, assignment)
    shard = Shard.read(text, vocab_size=config.vocab_size)
    if shard.bos_id != config.bos_token_id:
        raise BadInput(
            f"shard: its documents begin with token {shard.bos_id}, expected the mixture's BOS, "
            f"{config.bos_token_id}"
        )
    batches = Batches(shard, assignment.train)
    origin = Origin(
        mixture=piece_list_of(folder / WEIGHTS).ref().digest,
        config=digest_bytes((folder / CONFIG).read_bytes()),
        shard=piece_list_of(text).ref().digest,
    )
    model = open_mixture(folder)
    losses = _set_losses(model, assignment.losses)
    weights = _freeze(model, assignment.trains)
    spec = _identity(assignment, origin, losses)
    state = TrainerState(spec=spec, step=0, loss=None, train_seconds=0.0)
    resume = None if assignment.resume is None else Path(assignment.resume)
    if resume is not None:
        state = checkpoints.state_of(resume, spec=spec, num_steps=assignment.train.num_steps)
        _put_weights(resume, weights)
    if assignment.gradient_checkpointing:
        for layer in model.model.layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    model.to(torch.device(assignment.device)).train()  # type: ignore[arg-type]  # wraps hide self
    optimizer = MixtureOptimizer(weights, assignment.train)
    if resume is not None:
        optimizer.restore(checkpoints.read_moments(resume), step=state.step)
    return MixtureTraining(assignment, losses, origin, model, optimizer, batches, state)


def _config(folder: Path, assignment: MixtureAssignment) -> HdeeMoeConfig:
    """The mixture's configuration, where a training of it makes sense. Raises BadInput, OSError."""
    try:
        config = read_config(folder)
        check_trainable(config, assignment.trains, assignment.losses)
    except MixingError as error:
        raise BadInput(str(error)) from error
    length, context = assignment.train.sequence_length, config.max_position_embeddings
    if length > context:
        raise BadInput(
            f"train.sequence_length {length}: expected at most the mixture's context of {context}"
        )
    if config.attention_dropout:
        raise BadInput(
            f"mixture: attention_dropout {config.attention_dropout}, expected 0: what is dropped "
            "could not be repeated"
        )
    return config


def _set_losses(model: HdeeMoeForCausalLM, asked: RouterLosses | None) -> RouterLosses:
    """What the router's losses weigh: as asked, or as the configuration says."""
    config = model.config
    if asked is None:
        return RouterLosses(
            penalty=config.penalty_weight,
            balance=config.balance_weight,
            entropy=config.entropy_weight,
        )
    config.penalty_weight = asked.penalty
    config.balance_weight = asked.balance
    config.entropy_weight = asked.entropy
    return asked


def _freeze(model: HdeeMoeForCausalLM, trains: MixtureTrains) -> dict[str, nn.Parameter]:
    """Freezes all weights but those that are trained, and returns these by their names."""
    weights = {}
    for name, weight in model.named_parameters():
        weight.requires_grad_(is_trained(trains, name))
        if weight.requires_grad:
            weights[name] = weight
    return weights


def _identity(assignment: MixtureAssignment, origin: Origin, losses: RouterLosses) -> str:
    """The digest of what decides a training's course, however long it is.

    A longer training on the same curve passes through the end of a shorter one.
    """
    train = assignment.train
    return digest_value(
        {
            **asdict(origin),
            "trains": assignment.trains,
            "losses": losses.model_dump(),
            "train": train.model_copy(update={"num_steps": train.schedule_steps}).model_dump(),
        }
    )


def _put_weights(folder: Path, weights: Mapping[str, nn.Parameter]) -> None:
    """Puts the weights of the checkpoint in `folder` in their places, once all of its files fit."""
    forms: dict[str, TensorForm] = {
        name: ("F32", tuple(weight.shape)) for name, weight in weights.items()
    }
    for file, expected in ((TRAINED, forms), (checkpoints.OPTIMIZER, state_tensors(forms))):
        check_file(folder / file, expected)
        check_finite(folder / file)
    tensors = read_tensors(folder / TRAINED)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(torch.from_numpy(tensors[name].copy()))


def _cross_entropy(
    model: HdeeMoeForCausalLM, hidden: torch.Tensor, gates: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mean negative log-likelihood of `labels` int64 [rows] in nats, never with all logits.

    `hidden` [rows, features]; `gates` [rows, N] matter where experts own their heads.
    """
    if "head" not in model.config.owned:
        return cross_entropy(hidden, model.lm_head.weight, labels)

    def summed(hidden: torch.Tensor, gates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = model.head_logits(hidden, gates).float()
        return functional.cross_entropy(logits, labels, reduction="sum")

    rows = max(1, LOGIT_CHUNK // (model.config.vocab_size * model.config.num_experts))
    total = hidden.new_zeros((), dtype=torch.float32)
    for part in zip(hidden.split(rows), gates.split(rows), labels.split(rows), strict=True):
        # Logits are computed again on the way back, which costs less than to keep them.
        total = total + checkpoint(summed, *part, use_reentrant=False, preserve_rng_state=False)
    return total / len(labels)
