"""A domain, a size and steps to the spec of a seed, an expert or the dense baseline. Pure."""

import hashlib

from coordinator.planning.errors import PlanError
from coordinator.pretrained.specs import pretrained_seed_spec
from coordinator.runfile import GENERAL, MIXED, RunFile
from coordinator.sections import Recipe, SeedRecipe, WidthLabel
from coordinator.text.prepared import Prepared
from protocol.ids import Digest
from protocol.specs import ExpertSpec, Ingredient, Kind, ModelShape, TrainSpec
from shared.sizing import step_flops


def rng_seed_of(rng_seed: int, name: str) -> int:
    """The rng_seed of the spec that trains on the domain `name`.

    The first four bytes of the SHA-256 of `hdee-rng-seed|RNG_SEED|NAME`: it does not depend on the
    scheme, so that equal work in two schemes is one spec.
    """
    digest = hashlib.sha256(f"hdee-rng-seed|{rng_seed}|{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seed_specs(run: RunFile, prepared: Prepared) -> dict[str, ExpertSpec]:
    """Width label to the seed that experts of this width branch from.

    nested: one spec, as wide as L with S and M as prefixes if there are any, under all labels.
    per-size: one spec for each width that the plan uses, M always. pretrained: one spec under all
    labels.
    """
    if run.seed.kind == "pretrained":
        spec = pretrained_seed_spec(run, prepared)
        return {"S": spec, "M": spec, "L": spec}
    if run.seed.kind == "nested":
        spec = _seed(run, prepared, width=run.widths.widest, nested=run.widths.nested())
        return {"S": spec, "M": spec, "L": spec}
    return {
        label: _seed(run, prepared, width=run.widths.of(label), nested=())
        for label in run.width_labels()
    }


def _seed(run: RunFile, prepared: Prepared, *, width: int, nested: tuple[int, ...]) -> ExpertSpec:
    recipe = run.seed.recipe
    if recipe is None:
        raise PlanError(f"seed.recipe: missing; seed.kind {run.seed.kind!r} needs it")
    return ExpertSpec(
        kind="seed",
        domain=GENERAL,
        shape=_shape(run, prepared, width),
        nested_widths=nested,
        train_shard=prepared.shard(GENERAL, "train").blob.digest,
        parent=None,
        trains="all",
        train=_train(recipe, steps=recipe.num_steps, schedule_steps=recipe.num_steps, name=GENERAL),
    )


class Recipes:
    """Makes the specs of a run's experts."""

    def __init__(self, run: RunFile, prepared: Prepared) -> None:
        self._run = run
        self._prepared = prepared

    def expert(
        self, domain: str, *, text: str, label: WidthLabel, steps: int, parent: Digest
    ) -> ExpertSpec:
        """The expert that takes `steps` on the train shard of `text`, for the domain."""
        recipe = self._run.recipe
        schedule_steps = recipe.schedule_steps or steps
        train = _train(recipe, steps=steps, schedule_steps=schedule_steps, name=domain)
        return self._branch("expert", domain, text, label=label, parent=parent, train=train)

    def average(self, domain: str, *, ffn_width: int, shares: dict[Digest, float]) -> ExpertSpec:
        """The weighted mean of earlier experts, which the domain's expert branches from.

        It is as wide as the widest of them.
        """
        recipe = self._run.recipe
        ends_at = max(1, recipe.warmup_steps)
        train = _train(recipe, steps=0, schedule_steps=ends_at, name=domain)
        return ExpertSpec(
            kind="average",
            domain=domain,
            shape=_shape(self._run, self._prepared, ffn_width),
            nested_widths=(),
            train_shard=self._prepared.shard(domain, "train").blob.digest,
            parent=None,
            trains="all",
            train=train,
            ingredients=tuple(
                Ingredient(spec=spec, share=share) for spec, share in sorted(shares.items())
            ),
        )

    def dense(
        self, *, budget: float, rate: float, parent: Digest, trial_steps: int | None = None
    ) -> ExpertSpec:
        """Seed M continued on all text, at `rate`, for `budget` FLOPs: whole steps, rounded.

        Its cosine is left where a homogeneous expert leaves its own. With `trial_steps` it is a
        trial, the beginning of the same training. Raises PlanError for a trial that is too long.
        """
        recipe, plan = self._run.recipe, self._run.plan
        final = rate * recipe.final_learning_rate / recipe.peak_learning_rate
        rated = recipe.model_copy(
            update={"peak_learning_rate": rate, "final_learning_rate": min(final, rate)}
        )

        def spec_of(steps: int, whole: int) -> ExpertSpec:
            ends_at = whole
            if recipe.schedule_steps is not None:
                ends_at = round(whole * recipe.schedule_steps / plan.homogeneous_steps)
            train = _train(rated, steps=steps, schedule_steps=max(ends_at, whole), name=MIXED)
            return self._branch("dense", MIXED, MIXED, label="M", parent=parent, train=train)

        least = max(1, recipe.warmup_steps)
        steps = max(least, round(budget / step_flops(spec_of(least, least))))
        if trial_steps is not None and trial_steps > steps:
            raise PlanError(
                f"dense.trial_steps {trial_steps}: expected at most the {steps} steps of the dense "
                "baseline"
            )
        return spec_of(trial_steps or steps, steps)

    def _branch(
        self,
        kind: Kind,
        domain: str,
        text: str,
        *,
        label: WidthLabel,
        parent: Digest,
        train: TrainSpec,
    ) -> ExpertSpec:
        return ExpertSpec(
            kind=kind,
            domain=domain,
            shape=_shape(self._run, self._prepared, self._run.widths.of(label)),
            nested_widths=(),
            train_shard=self._prepared.shard(text, "train").blob.digest,
            parent=parent,
            trains=self._run.recipe.trains,
            train=train,
            lora=None if self._run.ranks is None else self._run.ranks.lora(label),
        )


def _shape(run: RunFile, prepared: Prepared, width: int) -> ModelShape:
    return ModelShape(vocab_size=prepared.vocab_size, ffn_width=width, **run.shape.model_dump())


def _train(recipe: Recipe | SeedRecipe, *, steps: int, schedule_steps: int, name: str) -> TrainSpec:
    return TrainSpec(
        num_steps=steps,
        schedule_steps=schedule_steps,
        warmup_steps=recipe.warmup_steps,
        peak_learning_rate=recipe.peak_learning_rate,
        final_learning_rate=recipe.final_learning_rate,
        micro_batch=recipe.micro_batch,
        accumulation=recipe.accumulation,
        sequence_length=recipe.sequence_length,
        clip_norm=recipe.clip_norm,
        rng_seed=rng_seed_of(recipe.rng_seed, name),
        compile=recipe.compile,
    )
