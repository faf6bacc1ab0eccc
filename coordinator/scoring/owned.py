"""Experts on workers' own data: publishes the terms, and plans one where its seed is there."""

import logging
from collections.abc import Callable, Mapping

from coordinator.ledger import Ledger, queries
from coordinator.names import checkpoint_name
from coordinator.planning.owned import own_data_terms, own_expert
from coordinator.runfile import RunFile
from coordinator.scoring.outcome import OwnDomainFacts
from coordinator.text.prepared import Prepared
from protocol.specs import ExpertSpec
from shared.logs import facts

MARKER_TEXT = """\
# An expert on own data

Trained by the worker {worker} on text of the domain `{domain}` that never left its machine.

- Nobody but that worker could measure what it is worth on its own domain: perplexities that the run
  shows of it are self-reported.
- What was verified: on gate text of every domain of the run it is not worse than its seed beyond
  {bound}, by a paired 99 % interval. That says harmless, not good.
- It counts in no scheme, no ensemble, no comparison and no credit of the run.
- Weights may give back passages of the text that they were trained on.
"""


def marker_text(domain: str, worker: str, *, harm_percent: float | None) -> str:
    """What lies beside the weights of an expert on own data, in Markdown. Pure.

    `harm_percent` None: the run has no bound any more.
    """
    bound = "the run's bound of then" if harm_percent is None else f"{harm_percent:g} % perplexity"
    return MARKER_TEXT.format(domain=domain, worker=worker, bound=bound)


class OwnData:
    """Beside the plan, which knows nothing of it: the run waits for none of these experts."""

    def __init__(
        self,
        run: RunFile,
        prepared: Prepared,
        ledger: Ledger,
        *,
        seeds: dict[str, ExpertSpec],
        now: Callable[[], float],
        log: logging.Logger,
    ) -> None:
        self._run = run
        self._prepared = prepared
        self._ledger = ledger
        self._seeds = seeds
        self._now = now
        self._log = log
        self._published = False

    def facts(self) -> tuple[OwnDomainFacts, ...]:
        """What results say of own domains, as of now."""
        with self._ledger.read() as connection:
            views = queries.own_domain_views(connection, now=self._now())
        return tuple(
            OwnDomainFacts(
                domain=view.domain,
                worker=view.worker,
                state=view.state,
                num_train_tokens=view.num_train_tokens,
                perplexity_before=view.perplexity_before,
                perplexity_after=view.perplexity_after,
            )
            for view in views
        )

    def marker(self, row: queries.AcceptedRow) -> str | None:
        """What to write beside the weights of an accepted expert; None: it is on the run's text."""
        if row.owner is None:
            return None
        own = self._run.own_data
        harm_percent = None if own is None else own.harm_percent
        return marker_text(row.spec.domain, row.owner, harm_percent=harm_percent)

    def publish(self) -> None:
        """Let workers know the run's terms, or that it has none any more; once."""
        if not self._published:
            terms = own_data_terms(self._run, self._prepared)
            with self._ledger.begin() as connection:
                queries.set_own_data_terms(connection, terms, now=self._now())
            self._published = True

    def plan(self, accepted: Mapping[str, queries.AcceptedRow]) -> bool:
        """Open the assignments of own domains that have none yet; whether there were any."""
        own = self._run.own_data
        if own is None or self._seeds[own.width].digest not in accepted:
            return False
        with self._ledger.read() as connection:
            held = queries.all_own_domains(connection)
        waiting = [row for row in held if row.assignment is None and not row.banned]
        for row in waiting:
            spec = own_expert(self._run, self._prepared, row.offer, self._seeds)
            with self._ledger.begin() as connection:
                queries.plan_own_expert(connection, row, spec, now=self._now())
            self._log.info(
                "planned %s", facts(expert=checkpoint_name(spec), own_data_of=row.worker)
            )
        return bool(waiting)
