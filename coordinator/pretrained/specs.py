"""The spec of a pretrained seed, from the run file and what prepare found. Pure."""

from coordinator.runfile import GENERAL, RunFile
from coordinator.text.prepared import Prepared
from protocol.specs import ExpertSpec, ModelShape, TrainSpec


def pretrained_seed_spec(run: RunFile, prepared: Prepared) -> ExpertSpec:
    """The one seed of a run whose seed is pretrained: as wide as L, with S and M as prefixes.

    With one width it is the model as it is.

    `train_shard` is the text that activity is measured on; the rest of `train` says only what a
    spec must. Raises ValueError for a run with another seed, or prepared with one.
    """
    if run.seed.pretrained is None:
        raise ValueError(f"seed.kind {run.seed.kind!r}: expected 'pretrained'")
    return ExpertSpec(
        kind="pretrained",
        domain=GENERAL,
        shape=ModelShape(
            vocab_size=prepared.vocab_size, ffn_width=run.widths.widest, **run.shape.model_dump()
        ),
        nested_widths=run.widths.nested(),
        train_shard=prepared.shard(GENERAL, "train").blob.digest,
        parent=None,
        trains="all",
        train=TrainSpec(
            num_steps=0,
            schedule_steps=1,
            warmup_steps=0,
            peak_learning_rate=1.0,
            final_learning_rate=1.0,
            micro_batch=1,
            accumulation=1,
            sequence_length=run.shape.context_length,
            clip_norm=0.0,
            rng_seed=0,
            compile=False,
        ),
        origin=prepared.origin,
    )
