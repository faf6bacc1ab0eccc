"""What the numbers say, in whole sentences. Every claim is a verdict of an interval. Pure."""

from collections import Counter
from collections.abc import Sequence

from coordinator.report.comparison_tables import VERDICTS, count_verdicts, opponents
from coordinator.report.forms import flops, listed, points
from coordinator.report.plan_tables import UNITS, balance_words
from coordinator.report.replicates import FEW, Effect
from coordinator.report.study import ROLES, Study
from coordinator.scoring.outcome import Role, Verdict

POINTS_WORDS = (
    "Points are log-perplexity points, 100 × nats per label: about percent of perplexity. Negative "
    "is better. Better and worse are said only where a 95 % interval excludes 0; a tie is a tie by "
    "construction, since the same expert stands behind both."
)

OUTCOMES: dict[Verdict, str] = {
    "better": "better",
    "worse": "worse",
    "unclear": "not told apart",
    "tie": "tied by construction",
}
PAST: dict[Verdict, str] = {"tie": "tied"}


def summary_of(study: Study) -> tuple[str, ...]:
    """What was compared at which budget, who is better than whom, and what the intervals lack."""
    sentences = [_setting(study)]
    for with_seed in (False, True):
        for other, names in opponents(study, with_seed=with_seed).items():
            sentences += _outcomes(study, names, other)
    for other, names in opponents(study, with_seed=False).items():
        for name in names:
            sentences += _against(study, name, other)
    return (*sentences, *rate_words(study), POINTS_WORDS, noise_words(study))


def rate_words(study: Study) -> tuple[str, ...]:
    """A caution where the dense baseline took the lowest or the highest rate that was tried."""
    at_the_edge: dict[tuple[float, str, str], int] = {}
    for run in study.runs:
        dense = {
            one.name: one.train.peak_learning_rate for one in run.checkpoints if one.kind == "dense"
        }
        chosen = dense.get(run.dense or "")
        tried = {*dense.values(), *(rate for one in run.search for rate in one.diverged)}
        if chosen is None or len(tried) == 1:
            continue
        for edge, most, more in ((min, "lowest", "lower"), (max, "highest", "higher")):
            if chosen == edge(tried):
                key = chosen, most, more
                at_the_edge[key] = at_the_edge.get(key, 0) + 1
    return tuple(
        f"The dense baseline took {chosen:g}, the {most} of the learning rates tried"
        + (f", in {count} of {len(study.runs)} runs" if len(study.runs) > 1 else "")
        + f": it might be better at a {more} one."
        for (chosen, most, more), count in at_the_edge.items()
    )


def noise_words(study: Study) -> str:
    """What the intervals hold, and what they do not."""
    count = len(study.runs)
    if count == 1:
        return (
            "One run: its intervals are a bootstrap over test documents. The noise of training, "
            "another order of the text or another start, is not in them; that takes replicates "
            "with other values of rng_seed."
        )
    caution = (
        f" {count} replicates are few: the intervals are wide, and their width is uncertain too."
        if count < FEW
        else ""
    )
    return (
        f"{count} replicates: differences are means over them, and intervals are Student's t "
        f"with {count - 1} degree{'s' if count > 2 else ''} of freedom, which hold the noise of "
        f"training.{caution}"
    )


def _setting(study: Study) -> str:
    sizes = {title: len(study.of_role(role)) for role, title in ROLES.items()}
    groups = listed(tuple(f"{size} {title}" for title, size in sizes.items() if size))
    domains = "domain" if sum(sizes.values()) == 1 else "domains"
    schemes = study.schemes
    what = f"{len(schemes)} schemes, {listed(schemes)}," if len(schemes) > 1 else schemes[0]
    verb = "are compared" if len(schemes) > 1 else "is scored"
    text = f"{what} {verb} on {groups} {domains}"
    budgets = study.base.budgets
    if not budgets:
        return f"{text}."
    budget = budgets[0]
    each = "each" if len(schemes) > 1 else "it"
    text += f"; {each} may spend {flops(budget.flops)} of training ({budget.ffn_steps:,} FFN width "
    text += f"× steps), balanced in {UNITS[study.base.unit]}"
    return f"{text}: {balance_words(study)}" if len(schemes) > 1 else f"{text}."


def _outcomes(study: Study, columns: Sequence[str], other: str) -> list[str]:
    """For each group of domains one sentence: on their mean, which columns are what to `other`."""
    sentences = []
    for role, title in ROLES.items():
        means = {column: _mean(study, column, other, role) for column in columns}
        parts = []
        for verdict, words in OUTCOMES.items():
            names = [name for name, mean in means.items() if mean and mean.verdict == verdict]
            parts += [f"{listed(tuple(names))} {words}"] if names else []
        if parts:
            claims = "; ".join(parts)
            sentences.append(f"Against {other}, on the mean of {title} domains: {claims}.")
    return sentences


def _against(study: Study, scheme: str, other: str) -> list[str]:
    """A sentence on two columns, if they were compared at all: own domains, then held-out ones."""
    parts = []
    for role, title in ROLES.items():
        counts = count_verdicts(study, a=scheme, b=other, role=role)
        if counts is None:
            continue
        mean = _mean(study, scheme, other, role)
        claim = f"; their mean: {_claim(mean)}" if mean else ""
        parts.append(f"{title} domains: {_counted(counts)}{claim}")
    return [f"{scheme} against {other}. " + ". ".join(map(_capital, parts)) + "."] if parts else []


def _mean(study: Study, scheme: str, other: str, role: Role) -> Effect | None:
    group = study.group_of(role)
    return study.effects.between(scheme, other, group) if group else None


def _counted(counts: Counter[Verdict]) -> str:
    total = sum(counts.values())
    found = tuple(f"{counts[one]} {PAST.get(one, one)}" for one in VERDICTS if counts[one])
    return f"{listed(found)} of {total}"


def _claim(effect: Effect) -> str:
    if effect.verdict == "tie":
        return "a tie by construction, both rest on the same experts"
    verdict = "not told apart" if effect.verdict == "unclear" else effect.verdict
    interval = f"95 % from {points(effect.low)} to {points(effect.high)}"
    return f"{verdict}, {points(effect.difference)} points ({interval})"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
