"""A seed to be trained on made-up text: what a trainer is told where its speed is what counts."""

from pathlib import Path

from protocol.digests import digest_bytes
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from shared.training.assignment import TrainerAssignment


def seed_assignment(
    shard: Path,
    shape: ModelShape,
    *,
    num_steps: int,
    batch: int,
    compiled: bool = False,
    num_threads: int = 1,
) -> TrainerAssignment:
    """Steps of `batch` whole contexts on a CPU, in the folder of `shard`; no checkpoints."""
    spec = ExpertSpec(
        kind="seed",
        domain="text",
        shape=shape,
        nested_widths=(),
        train_shard=digest_bytes(shard.read_bytes()),
        parent=None,
        trains="all",
        train=TrainSpec(
            num_steps=num_steps,
            schedule_steps=num_steps,
            warmup_steps=0,
            peak_learning_rate=1e-3,
            final_learning_rate=0.0,
            micro_batch=batch,
            accumulation=1,
            sequence_length=shape.context_length,
            clip_norm=1.0,
            rng_seed=1,
            compile=compiled,
        ),
    )
    return TrainerAssignment(
        spec=spec,
        shard=str(shard),
        parent=None,
        parent_shape=None,
        resume=None,
        folder=str(shard.parent),
        device="cpu",
        num_threads=num_threads,
        checkpoint_seconds=3600.0,
    )
