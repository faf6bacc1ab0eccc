"""Tables of what was planned: difficulty, budget and its balance, what each domain got. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass

from coordinator.report.study import ROLES, Study
from coordinator.report.values import Column, Table, row
from coordinator.scoring.outcome import BudgetFacts, CheckpointFacts, Results

RNG_SEED = Column("rng_seed", "rng_seed")

UNITS = {"flops": "training FLOPs", "ffn_steps": "FFN width × steps"}


@dataclass(frozen=True)
class Allotment:
    """What a scheme spent on a domain. `share` is of the FLOPs of all of the scheme's experts."""

    scheme: str
    domain: str
    expert: CheckpointFacts
    share: float


def difficulty_table(study: Study) -> Table:
    """Each domain: how hard the seed finds it, its class, its round, and how much text there is."""
    rows = [
        row(
            run.rng_seed,
            scores.domain,
            ROLES[scores.role],
            scores.round,
            scores.seed_dev_perplexity,
            scores.difficulty,
            scores.num_documents,
            scores.num_labels,
            scores.num_bytes,
        )
        for run in study.runs
        for scores in Study(runs=(run,)).domains
    ]
    return Table(
        name="difficulty",
        title="Domains and their difficulty",
        columns=(
            RNG_SEED,
            Column("domain", "Domain"),
            Column("group", "Group"),
            Column("round", "Round", "count"),
            Column("seed_dev_perplexity", "Seed's perplexity, dev", "perplexity"),
            Column("difficulty", "Class"),
            Column("test_documents", "Test documents", "count"),
            Column("test_labels", "Test labels", "count"),
            Column("test_bytes", "Test bytes", "count"),
        ),
        rows=tuple(rows),
        note="The class follows the seed's perplexity on the domain's dev text, unless the run "
        "file pins it. Held-out domains have no round: no expert was trained on them.",
    )


def budget_table(study: Study) -> Table:
    """What each scheme's experts cost, in both units, beside the first scheme's."""
    rows = [
        row(
            run.rng_seed,
            one.scheme,
            one.ffn_steps,
            one.ffn_steps_ratio,
            one.flops,
            one.flops_ratio,
            one.probe_flops,
        )
        for run in study.runs
        for one in run.budgets
    ]
    return Table(
        name="budget",
        title="Budget and its balance",
        columns=(
            RNG_SEED,
            Column("scheme", "Scheme"),
            Column("ffn_steps", "FFN width × steps", "count"),
            Column("ffn_steps_ratio", "To the first", "ratio"),
            Column("flops", "Training FLOPs", "flops"),
            Column("flops_ratio", "To the first", "ratio"),
            Column("probe_flops", "Probes beside it", "flops"),
        ),
        rows=tuple(rows),
        note=f"The budget is balanced in {UNITS[study.base.unit]}; {balance_words(study)} The "
        "other unit is shown for comparison. Probes are trainings beside the experts that only "
        "measured where steps help most: their FLOPs come on top.",
    )


def search_table(study: Study) -> Table:
    """What was trained to find steps and rates, beside every budget."""
    rows = [
        row(
            run.rng_seed,
            one.purpose,
            one.num_trainings,
            one.flops,
            ", ".join(f"{rate:g}" for rate in one.diverged) or None,
        )
        for run in study.runs
        for one in run.search
    ]
    return Table(
        name="search",
        title="What the search for steps and rates cost",
        columns=(
            RNG_SEED,
            Column("purpose", "For"),
            Column("trainings", "Trainings", "count"),
            Column("flops", "Training FLOPs, at most", "flops"),
            Column("diverged", "Rates that diverged"),
        ),
        rows=tuple(rows),
        note="No budget that is compared contains these trainings. Where one goes on from another, "
        "what they have in common is trained once: the FLOPs are those of all from the start.",
    )


def balance_words(study: Study) -> str:
    """The proof line: how far the binding unit is from balance, at most."""
    off = [abs(ratio_of(run, one) - 1) for run in study.runs for one in run.budgets]
    if not off:
        return "no scheme's cost is known."
    return f"the scheme furthest from the first differs by {100 * max(off):.3f} %."


def ratio_of(run: Results, budget: BudgetFacts) -> float:
    """A scheme's cost in the run's binding unit, to the first scheme's."""
    return budget.flops_ratio if run.unit == "flops" else budget.ffn_steps_ratio


def allotments(run: Results) -> Iterator[Allotment]:
    """What every scheme spent on every domain that it trained on."""
    checkpoints = {one.name: one for one in run.checkpoints}
    for scheme, experts in run.schemes.items():
        spent = {domain: checkpoints[name] for domain, name in experts.items()}
        total = sum(one.flops for one in spent.values())
        for domain, expert in spent.items():
            yield Allotment(
                scheme=scheme,
                domain=domain,
                expert=expert,
                share=expert.flops / total if total else 0.0,
            )


def allotment_table(study: Study) -> Table:
    """The numbers behind the figure of budgets by domain."""
    rows = [
        row(
            one.domain,
            one.scheme,
            one.expert.name,
            one.expert.shape.ffn_width,
            one.expert.lora_rank,
            one.expert.train.num_steps,
            one.expert.flops,
            one.share,
        )
        for one in allotments(study.base)
    ]
    return Table(
        name="budget-by-domain",
        title="Budget by domain and scheme",
        columns=(
            Column("domain", "Domain"),
            Column("scheme", "Scheme"),
            Column("expert", "Expert"),
            Column("ffn_width", "FFN width", "count"),
            Column("lora_rank", "LoRA rank", "count"),
            Column("steps", "Steps", "count"),
            Column("flops", "Training FLOPs", "flops"),
            Column("share", "Of the scheme's", "share"),
        ),
        rows=tuple(rows),
        is_folded=True,
    )


def checkpoints_table(study: Study) -> Table:
    """Every checkpoint: what it is, what it was made from, by whom, and its digests."""
    rows = [row(*_facts_of(run, one)) for run in study.runs for one in run.checkpoints]
    return Table(
        name="checkpoints",
        title="Every checkpoint",
        columns=(
            RNG_SEED,
            Column("name", "Checkpoint"),
            Column("kind", "Kind"),
            Column("domain", "Domain"),
            Column("round", "Round", "count"),
            Column("hidden_size", "Hidden size", "count"),
            Column("num_layers", "Layers", "count"),
            Column("ffn_width", "FFN width", "count"),
            Column("lora_rank", "LoRA rank", "count"),
            Column("steps", "Steps", "count"),
            Column("trains", "Trains"),
            Column("peak_learning_rate", "Peak learning rate"),
            Column("train_rng_seed", "rng_seed of training"),
            Column("flops", "Training FLOPs", "flops"),
            Column("parent", "Parent"),
            Column("ingredients", "Made of"),
            Column("schemes", "Serves"),
            Column("worker", "Worker"),
            Column("spec", "Spec digest", "digest"),
            Column("file", "Weights digest", "digest"),
        ),
        rows=tuple(rows),
        note="A spec's digest names everything that determines its weights; the weights' digest is "
        "that of their file. FLOPs count all of a checkpoint's steps, also those it shares with "
        "another one. Digests are shortened here; report.json has them whole.",
        is_folded=True,
    )


def provenance_table(study: Study) -> Table:
    """Seeds of randomness, digests and versions of every run."""
    rows = []
    for run in study.runs:
        facts: list[tuple[str, str, str | int]] = [("seed", "rng_seed", run.rng_seed)]
        facts.append(("checkpoint", "seed model", run.seed))
        facts += [("checkpoint", "dense baseline", run.dense)] if run.dense else []
        facts += [("digest", name, digest) for name, digest in run.digests.items()]
        facts += [("version", name, version) for name, version in run.versions.items()]
        rows += [row(run.run, run.rng_seed, *fact) for fact in facts]
    return Table(
        name="provenance",
        title="Seeds, digests and versions",
        columns=(
            Column("run", "Run"),
            RNG_SEED,
            Column("kind", "Kind"),
            Column("name", "Name"),
            Column("value", "Value"),
        ),
        rows=tuple(rows),
        is_folded=True,
    )


def _facts_of(run: Results, one: CheckpointFacts) -> tuple[str | int | float | None, ...]:
    made_of = ", ".join(f"{part.spec[:12]} × {part.share:.3f}" for part in one.ingredients)
    return (
        run.rng_seed,
        one.name,
        one.kind,
        one.domain,
        one.round,
        one.shape.hidden_size,
        one.shape.num_layers,
        one.shape.ffn_width,
        one.lora_rank,
        one.train.num_steps,
        one.trains,
        one.train.peak_learning_rate,
        one.train.rng_seed,
        one.flops,
        one.parent,
        made_of or None,
        ", ".join(one.schemes) or None,
        one.worker,
        one.spec,
        one.file,
    )
