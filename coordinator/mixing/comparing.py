"""`mix compare`: variants on dev text, and the best of them on test text beside all that it is for.

Test text is opened once, after the choice, for the chosen variant and those that were named before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.mixing.columns import (
    Floats,
    Line,
    best_single,
    column_labels,
    comparisons,
    document_sums,
    geometric_means,
    groups_of,
    mean_shares,
    rating,
    text_perplexities,
)
from coordinator.mixing.contenders import (
    Contender,
    Measuring,
    average_contender,
    checkpoint_contender,
)
from coordinator.mixing.kitchen import Kitchen
from coordinator.mixing.outcome import (
    AVERAGE,
    BEST_SINGLE,
    MIXTURE,
    ChooseBy,
    Group,
    MixedExpert,
    MixingResults,
    VariantScores,
)
from coordinator.mixing.run import FinishedRun
from coordinator.mixing.texts import Text, shortened, texts_of
from coordinator.mixing.usage import usage_of
from coordinator.mixing.variants import Levers, Variant, variants_of
from coordinator.scoring.ensembles import ShardScores
from coordinator.scoring.likelihood_cache import Labels
from coordinator.scoring.provenance import digests, versions
from shared.ensemble import perplexity, posterior_ensemble
from shared.mixing.ingredients import MixingError
from shared.mixing.progress import Stage, silent

ByText = dict[str, dict[str, Labels]]
"""Texts to models to labels."""


@dataclass(frozen=True)
class Question:
    """What is compared: the variants of `levers`, of which the one that `choose_by` rates best is
    measured on test text, with those named `also`.

    They are chosen on all dev text, or on the beginnings of it that have `dev_labels` labels each.
    """

    levers: Levers = field(default_factory=Levers)
    choose_by: ChooseBy = "own"
    also: tuple[str, ...] = ()
    dev_labels: int | None = None


def best_scheme(run: FinishedRun, *, stage: Stage = silent) -> str:
    """The scheme whose posterior ensemble is best on the dev text of the trained domains.

    By the geometric mean of perplexities; of equals the first.
    """
    schemes = list(run.results.members)
    if len(schemes) == 1:
        return schemes[0]
    texts = [text for text in texts_of(run, "dev") if text.role == "trained"]
    bench = Bench(run, texts)

    def loss(scheme: str) -> float:
        members = [
            checkpoint_contender(one.facts.name, one.checkpoint) for one in run.members(scheme)
        ]
        scores = bench.scores(members, stage=stage, what=f"measuring experts of {scheme}")
        perplexities = {
            name: perplexity(posterior_ensemble(one.matrix(list(one.by_model)), one.starts))
            for name, one in scores.items()
        }
        return geometric_means(perplexities, groups_of(texts))["own"]

    return min(schemes, key=loss)


class Bench:
    """Texts of one split, and contenders that are measured on all of them."""

    def __init__(self, run: FinishedRun, texts: Sequence[Text]) -> None:
        self.texts = tuple(texts)
        self.groups = groups_of(texts)
        self._context_length = run.context_length
        self._measuring = Measuring(run.folders, context_length=run.context_length)

    def scores(
        self, contenders: Sequence[Contender], *, stage: Stage, what: str
    ) -> dict[str, ShardScores]:
        """Every text under all of them, by their names."""
        tell, total = stage(what), self._measuring.num_missing(contenders, self.texts)
        done = 0

        def advance(labels: int) -> None:
            nonlocal done
            done += labels
            tell(done, total)

        tell(0, total)
        measured: ByText = {text.name: {} for text in self.texts}
        for one in contenders:
            for text, labels in self._measuring.measure(one, self.texts, advance=advance).items():
                measured[text][one.name] = labels
        return {
            text.name: text.scores(measured[text.name], self._context_length) for text in self.texts
        }


def on_dev(
    run: FinishedRun, contenders: Sequence[Contender], *, stage: Stage = silent
) -> dict[str, dict[str, float]]:
    """Perplexity of each on the run's dev text: by text, and by group as `all own`."""
    bench = Bench(run, texts_of(run, "dev"))
    scores = bench.scores(contenders, stage=stage, what="measuring on dev text")
    names = [one.name for one in contenders]
    by_text = {
        text: {name: perplexity(one.by_model[name]) for name in names}
        for text, one in scores.items()
    }
    groups = _by_group(by_text, bench.groups)
    return {**by_text, **{f"all {group}": means for group, means in groups.items()}}


def compare(
    run: FinishedRun, scheme: str, question: Question, *, stage: Stage = silent
) -> MixingResults:
    """The variants of one scheme's mixture on dev text, and the chosen one on test text.

    What was measured before, by this or by the run's scorer, comes from the run's cache. Raises
    MixingError where no variant can be made, and for a name in `also` that no variant has.
    """
    members = run.members(scheme)
    names = {member.name: member.facts.name for member in members}
    dev = Bench(run, texts_of(run, "dev"))
    models = _models(run, scheme)
    with Kitchen(run, members, stage=stage) as kitchen:
        known = dev.scores(models, stage=stage, what="measuring the experts on dev text")
        own = [known[name] for name in dev.groups["own"]]
        variants = variants_of(question.levers, mean_shares(own, names))
        _check_also(question.also, variants)
        shown = dev.texts
        if question.dev_labels is not None:
            shown = tuple(shortened(text, question.dev_labels) for text in shown)
        measured, refused = _on_dev(kitchen, variants, Bench(run, shown), stage)
        ranked = sorted(
            measured, key=lambda one: (rating(one.groups, question.choose_by), one.name)
        )
        chosen = ranked[0].name
        recipes = {variant.name: variant.recipe for variant in variants}
        columns = {MIXTURE: chosen, **{name: name for name in question.also if name != chosen}}
        test = Bench(run, texts_of(run, "test"))
        mixtures = [kitchen.contender(name, recipes[one]) for name, one in columns.items()]
        scores = test.scores(
            [*models, *mixtures], stage=stage, what="measuring the chosen mixture on test text"
        )
        tell = stage("counting whom the router turns to")
        usage = usage_of(kitchen.open(recipes[chosen]), dev.texts, tell=tell)
    found = _reported(run, scheme, scores, single=best_single(own, list(names.values())))
    by_text = {name: text_perplexities(labels) for name, labels in found.items()}
    sums = [document_sums(text, scores[text.name], found[text.name]) for text in test.texts]
    return MixingResults(
        run=run.results.run,
        rng_seed=run.results.rng_seed,
        scheme=scheme,
        experts=tuple(
            MixedExpert(
                name=one.name,
                checkpoint=one.facts.name,
                domains=one.domains,
                ffn_width=one.checkpoint.shape.ffn_width,
            )
            for one in members
        ),
        choose_by=question.choose_by,
        variants=tuple(ranked),
        refused=refused,
        chosen=chosen,
        usage=usage,
        documents={text.name: text.shard.num_documents for text in test.texts},
        perplexity=by_text,
        groups=_by_group(by_text, test.groups),
        comparisons=comparisons(sums, test.groups, list(columns)),
        versions=versions(),
        digests=digests(run.run, run.folders, run.prepared),
    )


def _models(run: FinishedRun, scheme: str) -> list[Contender]:
    """The seed, the dense baseline, the members, and the average of their weights."""
    members = run.members(scheme)
    baselines = [run.seed, *([run.dense] if run.dense is not None else [])]
    found = {
        one.facts.name: checkpoint_contender(one.facts.name, one.checkpoint)
        for one in (*baselines, *members)
    }
    models = list(found.values())
    if run.run.seed.kind != "per-size" and len(members) > 1:
        files = [one.checkpoint for one in members]
        models.append(average_contender(AVERAGE, files, run.folders.averages))
    return models


def _on_dev(
    kitchen: Kitchen, variants: Sequence[Variant], dev: Bench, stage: Stage
) -> tuple[list[VariantScores], dict[str, str]]:
    """What each variant scores, and why the others cannot be made."""
    measured: list[VariantScores] = []
    refused: dict[str, str] = {}
    for number, variant in enumerate(variants, start=1):
        try:
            contender = kitchen.contender(variant.name, variant.recipe)
            what = f"variant {number} of {len(variants)}, {variant.name}"
            scores = dev.scores([contender], stage=stage, what=what)
        except MixingError as error:
            refused[variant.name] = str(error)
            continue
        texts = {name: perplexity(one.by_model[variant.name]) for name, one in scores.items()}
        measured.append(
            VariantScores(
                name=variant.name,
                recipe=variant.recipe.model_dump(mode="json"),
                digest=contender.digest,
                texts=texts,
                groups=geometric_means(texts, dev.groups),
            )
        )
    if not measured:
        reasons = "; ".join(f"{name}: {words}" for name, words in refused.items())
        raise MixingError(f"no variant can be made: {reasons}")
    return measured, refused


def _reported(
    run: FinishedRun, scheme: str, scores: Mapping[str, ShardScores], *, single: str
) -> dict[str, dict[str, Floats]]:
    """Texts to columns to labels."""
    line = Line(
        seed=run.seed.facts.name,
        dense=None if run.dense is None else run.dense.facts.name,
        members=tuple(one.facts.name for one in run.members(scheme)),
    )
    return {
        name: {**column_labels(one, line), BEST_SINGLE: one.matrix([single])[0]}
        for name, one in scores.items()
    }


def _by_group(
    by_text: Mapping[str, Mapping[str, float]], groups: Mapping[Group, Sequence[str]]
) -> dict[Group, dict[str, float]]:
    columns = list(next(iter(by_text.values())))
    found: dict[Group, dict[str, float]] = {group: {} for group in groups}
    for column in columns:
        means = geometric_means({name: row[column] for name, row in by_text.items()}, groups)
        for group, mean in means.items():
            found[group][column] = mean
    return found


def _check_also(also: Sequence[str], variants: Sequence[Variant]) -> None:
    names = [variant.name for variant in variants]
    for name in also:
        if name not in names:
            raise MixingError(f"also {name!r}: no variant is called so, expected some of {names}")
