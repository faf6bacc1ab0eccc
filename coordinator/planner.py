"""From a run file, its shards and the seeds' perplexities to specs at equal budget. Pure.

The schemes are the paper's (arXiv 2502.19385): a class of difficulty gets its own FFN width
(MHe-IHo), its own number of steps (MHo-IHe), or neither (MHo-IHo).
"""

import hashlib
from collections.abc import Mapping

from coordinator.runfile import GENERAL, RunFile
from coordinator.sections import Difficulty, Recipe, Scheme, SeedRecipe, WidthLabel
from coordinator.text.prepared import Prepared
from protocol.ids import Digest
from protocol.messages import Label
from protocol.specs import ExpertSpec, ModelShape, TrainSpec
from protocol.values import Amount, Count, Items, Value
from shared.sizing import train_flops

__all__ = ["Budget", "Difficulty", "Plan", "PlanError", "classify", "make_plan", "seed_specs"]

MAX_IMBALANCE = 0.005
"""How far a scheme's budget may be from the first scheme's, in the binding unit."""

_CLASSES: tuple[Difficulty, ...] = ("easy", "moderate", "difficult")


class PlanError(ValueError):
    """The plan cannot be made; the message holds the numbers."""


class Budget(Value):
    """What the experts of one scheme cost in all; ratios are to the first scheme's.

    `ffn_steps` is the sum of FFN width x steps, the paper's unit; `flops` real training FLOPs.
    """

    scheme: Label
    ffn_steps: Count
    flops: Amount
    ffn_steps_ratio: Amount
    flops_ratio: Amount


class Plan(Value):
    """Scheme to domain to expert, and the proof that the schemes cost the same."""

    schemes: dict[str, dict[str, ExpertSpec]]
    budgets: Items[Budget]

    def assignments(self) -> list[tuple[ExpertSpec, tuple[str, ...]]]:
        """Each different expert once, with the schemes that it serves."""
        specs: dict[Digest, ExpertSpec] = {}
        schemes: dict[Digest, list[str]] = {}
        for scheme, experts in self.schemes.items():
            for spec in experts.values():
                specs[spec.digest] = spec
                schemes.setdefault(spec.digest, []).append(scheme)
        return [(spec, tuple(schemes[digest])) for digest, spec in specs.items()]


def rng_seed_of(rng_seed: int, name: str) -> int:
    """The rng_seed of the spec that trains on the domain `name`.

    The first four bytes of the SHA-256 of `hdee-rng-seed|RNG_SEED|NAME`: it does not depend on the
    scheme, so that equal work in two schemes is one spec.
    """
    digest = hashlib.sha256(f"hdee-rng-seed|{rng_seed}|{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def seed_specs(run: RunFile, prepared: Prepared) -> dict[str, ExpertSpec]:
    """Width label to the seed that experts of this width branch from.

    nested: one spec, as wide as L with S and M as prefixes, under all labels. per-size: one spec
    for each width that the plan uses, M always.
    """
    if run.seed.kind == "nested":
        spec = _seed(run, prepared, width=run.widths.L, nested=run.widths.ascending())
        return {"S": spec, "M": spec, "L": spec}
    return {
        label: _seed(run, prepared, width=run.widths.of(label), nested=())
        for label in run.width_labels()
    }


def _seed(run: RunFile, prepared: Prepared, *, width: int, nested: tuple[int, ...]) -> ExpertSpec:
    recipe = run.seed.recipe
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


def classify(
    seed_perplexity: Mapping[str, float], pins: Mapping[str, Difficulty]
) -> dict[str, Difficulty]:
    """Each domain's class: its tercile by `seed_perplexity` on dev, or its pin.

    Equal perplexities are ordered by name. Easy and difficult domains are equally many, the
    moderate ones as near to that as can be; a pin replaces the tercile of its domain alone.
    Raises PlanError for a pin of an unknown domain and a perplexity that is not a number.
    """
    unknown = sorted(pins.keys() - seed_perplexity.keys())
    if unknown:
        raise PlanError(f"pins {unknown}: expected domains of {sorted(seed_perplexity)}")
    for domain, perplexity in seed_perplexity.items():
        if not 1.0 <= perplexity < float("inf"):
            raise PlanError(f"{domain}: seed perplexity {perplexity}, expected 1 or more")
    ordered = sorted(seed_perplexity, key=lambda domain: (seed_perplexity[domain], domain))
    count = len(ordered)
    terciles = {
        domain: _CLASSES[(6 * rank + 3) // (2 * count)] for rank, domain in enumerate(ordered)
    }
    return {**terciles, **pins}


def make_plan(
    run: RunFile,
    prepared: Prepared,
    seeds: Mapping[str, ExpertSpec],
    classes: Mapping[str, Difficulty],
) -> Plan:
    """The experts of each scheme of `run`, in domain order, and their budgets.

    `seeds` are those of `seed_specs`, `classes` those of `classify`. Raises PlanError when a class
    is missing and when the schemes' budgets differ by over 0.5 % in the plan's unit.
    """
    if classes.keys() != run.domains.keys():
        raise PlanError(f"classes of {sorted(classes)}: expected {sorted(run.domains)}")
    schemes: dict[str, dict[str, ExpertSpec]] = {
        scheme: {
            domain: _expert(run, prepared, seeds, domain, *_allot(run, scheme, classes[domain]))
            for domain in sorted(run.domains)
        }
        for scheme in run.plan.schemes
    }
    budgets = _budgets(schemes)
    _refuse_imbalance(run, budgets)
    return Plan(schemes=schemes, budgets=budgets)


def _allot(run: RunFile, scheme: Scheme, difficulty: Difficulty) -> tuple[WidthLabel, int]:
    plan = run.plan
    label: WidthLabel = plan.widths.of(difficulty) if scheme == "MHe-IHo" else "M"
    if scheme == "MHo-IHe" and plan.steps is not None:
        return label, plan.steps.of(difficulty)
    return label, plan.homogeneous_steps


def _expert(
    run: RunFile,
    prepared: Prepared,
    seeds: Mapping[str, ExpertSpec],
    domain: str,
    label: WidthLabel,
    steps: int,
) -> ExpertSpec:
    schedule_steps = run.recipe.schedule_steps or steps
    return ExpertSpec(
        kind="expert",
        domain=domain,
        shape=_shape(run, prepared, run.widths.of(label)),
        nested_widths=(),
        train_shard=prepared.shard(domain, "train").blob.digest,
        parent=seeds[label].digest,
        trains=run.recipe.trains,
        train=_train(run.recipe, steps=steps, schedule_steps=schedule_steps, name=domain),
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


def _budgets(schemes: Mapping[str, Mapping[str, ExpertSpec]]) -> tuple[Budget, ...]:
    ffn_steps = {
        scheme: sum(spec.shape.ffn_width * spec.train.num_steps for spec in experts.values())
        for scheme, experts in schemes.items()
    }
    flops = {
        scheme: sum(train_flops(spec) for spec in experts.values())
        for scheme, experts in schemes.items()
    }
    first = next(iter(schemes))
    return tuple(
        Budget(
            scheme=scheme,
            ffn_steps=ffn_steps[scheme],
            flops=flops[scheme],
            ffn_steps_ratio=ffn_steps[scheme] / ffn_steps[first],
            flops_ratio=flops[scheme] / flops[first],
        )
        for scheme in schemes
    )


def _refuse_imbalance(run: RunFile, budgets: tuple[Budget, ...]) -> None:
    flops = run.plan.unit == "flops"
    ratios = {row.scheme: row.flops_ratio if flops else row.ffn_steps_ratio for row in budgets}
    if all(abs(ratio - 1) <= MAX_IMBALANCE for ratio in ratios.values()):
        return
    rows = "; ".join(
        f"{row.scheme}: {row.flops:.4g} flops ({row.flops_ratio:.4f}), "
        f"{row.ffn_steps} ffn_steps ({row.ffn_steps_ratio:.4f})"
        for row in budgets
    )
    raise PlanError(
        f"budgets differ by over {MAX_IMBALANCE:.1%} in {run.plan.unit}, with the ratio to the "
        f"first scheme in brackets: {rows}"
    )
