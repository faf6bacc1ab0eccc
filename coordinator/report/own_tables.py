"""What workers said of domains whose text stays with them: told apart from all that was scored."""

from coordinator.report.plan_tables import RNG_SEED
from coordinator.report.study import Study
from coordinator.report.values import Column, Section, Table, row

WORDS = (
    "These domains are their workers' own: the text never left their machines, so nobody could "
    "verify the perplexities, which are self-reported, on text that the worker held back. That an "
    "expert was accepted says that it is not much worse than its seed on the run's domains, and "
    "nothing of its own. None of them is in any scheme, ensemble or comparison of this report."
)


def own_section(study: Study) -> Section | None:
    """The own domains of all replicates as they stood at scoring; None where there are none."""
    rows = [
        row(
            run.rng_seed,
            own.domain,
            own.state,
            own.num_train_tokens,
            own.perplexity_before,
            own.perplexity_after,
            own.worker,
        )
        for run in study.runs
        for own in run.own_domains
    ]
    if not rows:
        return None
    table = Table(
        name="own_domains",
        title="Own data, self-reported, not verified on its own domain",
        columns=(
            RNG_SEED,
            Column("domain", "Domain"),
            Column("state", "Its expert"),
            Column("train_tokens", "Train tokens", "count"),
            Column("perplexity_before", "Seed, as reported", "perplexity"),
            Column("perplexity_after", "Expert, as reported", "perplexity"),
            Column("worker", "Worker"),
        ),
        rows=tuple(rows),
    )
    return Section(name="own-data", title="Own data", paragraphs=(WORDS,), tables=(table,))
