"""What a run will cost, before anything is fetched or trained. Pure."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.planning.blends import blends_of
from coordinator.planning.dealing import order_of
from coordinator.planning.difficulty import classify
from coordinator.planning.measured import Measured
from coordinator.planning.plan import Plan, make_plan
from coordinator.planning.recipes import seed_specs
from coordinator.runfile import GENERAL, RunFile
from coordinator.scoring.outcome import BudgetFacts, SearchCost
from coordinator.text.prepared import Prepared
from coordinator.text_sections import Difficulty
from protocol.blobs import BlobRef, ShardManifest, Split
from protocol.specs import ExpertSpec
from shared.sizing import (
    expert_bytes,
    matmul_parameters,
    num_parameters,
    train_flops,
    training_memory_bytes,
)

PEAK_FLOPS: Mapping[str, float] = {
    "H100": 989e12,
    "A100": 312e12,
    "RTX 4090": 165e12,
    "L4": 121e12,
    "RTX 3090": 71e12,
    "T4": 65e12,
}
"""Dense 16-bit matrix FLOP/s of a device as its maker states them (T4: fp16, others bf16)."""

UTILISATION = 0.35
"""The share of its peak that a device is expected to reach: an assumption, not a measurement."""

PLANNED_VOCABULARY = 32_000
"""Tokens that are reckoned with where nothing says yet how many there are."""


@dataclass(frozen=True)
class VocabularySize:
    """How many tokens the run's models tell apart, and who says so, in words."""

    num_tokens: int
    source: str
    assumed: bool = False


@dataclass(frozen=True)
class SpecRow:
    """Experts that are alike: `count` of them, each with these numbers."""

    kind: str
    ffn_width: int
    lora_rank: int | None
    num_steps: int
    count: int
    parameters: int
    body_parameters: int
    tokens: int
    flops: float
    gpu_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class Outlook:
    """What is to be trained, and for how long. `hours` maps a device to hours of one such device.

    `flops` are those of all of it, `search` the part of them that no compared budget contains.
    `assumed` says which classes were made up, because no seed has measured them yet. All numbers
    are those of models with this `vocabulary`.
    """

    rows: Sequence[SpecRow]
    budgets: Sequence[BudgetFacts]
    search: Sequence[SearchCost]
    flops: float
    hours: Mapping[str, float]
    assumed: bool
    vocabulary: VocabularySize


def outlook(run: RunFile, vocabulary: VocabularySize | None = None) -> Outlook:
    """The run's plan on classes that are pinned, else made up: as many of each as there will be.

    `vocabulary` is what was found beside the run file, None: nothing but that is known. The
    adaptive scheme is taken to find equal slopes. Raises PlanError as planning would.
    """
    vocabulary = vocabulary or _as_the_run_file_says(run)
    pins: dict[str, Difficulty] = {
        name: difficulty
        for name in run.trained
        if (difficulty := run.domains[name].difficulty) is not None
    }
    per_class = run.plan.rounds if run.plan.experts == "lineages" else None
    classes = classify(dict.fromkeys(run.trained, 2.0), pins, per_class=per_class)
    prepared = _imagined(run, classes, vocabulary.num_tokens)
    seeds = seed_specs(run, prepared)
    plan = _completed(run, prepared, seeds, classes)
    specs = [*dict.fromkeys(seeds.values()), *(spec for spec, _ in plan.assignments())]
    flops = float(sum(map(train_flops, specs)))
    return Outlook(
        rows=_rows(specs),
        budgets=plan.budgets,
        search=plan.search,
        flops=flops,
        hours={name: flops / (peak * UTILISATION) / 3600 for name, peak in PEAK_FLOPS.items()},
        assumed=len(pins) < len(run.trained),
        vocabulary=vocabulary,
    )


def _as_the_run_file_says(run: RunFile) -> VocabularySize:
    if run.tokenizer.vocab_size is not None:
        return VocabularySize(run.tokenizer.vocab_size, "as the run file says")
    given = run.tokenizer.model if run.seed.pretrained is None else run.seed.pretrained.path
    return VocabularySize(PLANNED_VOCABULARY, f"assumed: {given} is not there yet", assumed=True)


def _completed(
    run: RunFile,
    prepared: Prepared,
    seeds: Mapping[str, ExpertSpec],
    classes: Mapping[str, Difficulty],
) -> Plan:
    measured = Measured({}, {})
    while True:
        plan = make_plan(run, prepared, seeds, classes, measured)
        if plan.is_complete:
            return plan
        steps = {spec.digest: spec.train.num_steps for spec, _ in plan.assignments()}
        losses = {want: 1.0 - steps[want[0]] / 1e6 for want in plan.wants}
        alike = {want: (1 / len(want[0]),) * len(want[0]) for want in plan.wants_posteriors}
        measured = Measured({**measured.dev_loss, **losses}, {**measured.posteriors, **alike})


def _rows(specs: Sequence[ExpertSpec]) -> tuple[SpecRow, ...]:
    def alike(spec: ExpertSpec) -> tuple[str, int, int, int]:
        return spec.kind, spec.shape.ffn_width, spec.lora_rank or 0, spec.train.num_steps

    ordered = sorted(specs, key=lambda spec: (spec.kind != "seed", *alike(spec)))
    return tuple(
        _row(spec, 1 + sum(1 for _ in others))
        for _, group in itertools.groupby(ordered, key=alike)
        for spec, others in [(next(group), group)]
    )


def _row(spec: ExpertSpec, count: int) -> SpecRow:
    shape = spec.shape
    return SpecRow(
        kind=spec.kind,
        ffn_width=shape.ffn_width,
        lora_rank=spec.lora_rank,
        num_steps=spec.train.num_steps,
        count=count,
        parameters=num_parameters(shape),
        body_parameters=matmul_parameters(shape) - shape.vocab_size * shape.hidden_size,
        tokens=spec.train.num_steps * spec.train.tokens_per_step,
        flops=train_flops(spec),
        gpu_bytes=training_memory_bytes(spec, device="cuda"),
        file_bytes=expert_bytes(spec),
    )


def _imagined(run: RunFile, classes: Mapping[str, Difficulty], vocab_size: int) -> Prepared:
    """Shards of the right names, of which nothing but that is used."""
    numbers = itertools.count(1)

    def shard(name: str, split: Split) -> ShardManifest:
        return ShardManifest(
            domain=name,
            split=split,
            blob=BlobRef(digest=f"{next(numbers):064x}", size=1),
            num_documents=1,
            num_tokens=1,
            num_bytes=1,
            vocab_size=vocab_size,
        )

    names = [GENERAL, *run.trained]
    names += [blend.name for blend in blends_of(run, order_of(run, classes))]
    return Prepared(
        tokenizer=BlobRef(digest=f"{0:064x}", size=1),
        vocab_size=vocab_size,
        origin=None if run.seed.pretrained is None else f"{0:064x}",
        shards=tuple(shard(name, "train") for name in names),
    )
