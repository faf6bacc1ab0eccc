"""What can be planned so far: specs by scheme, and what to measure next. Pure.

The schemes are the paper's (arXiv 2502.19385): a class of difficulty gets its own FFN width
(MHe-IHo), its own number of steps (MHo-IHe), or neither (MHo-IHo); MHe-IHe gives it both, and
`adaptive` divides steps by what probes of the experts measured. A plan is made again whenever more
was measured: it names the same specs, and those that follow from it.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from coordinator.planning.baseline import Baseline
from coordinator.planning.budget import budgets_of, refuse_imbalance, search_costs
from coordinator.planning.dealing import rounds_of
from coordinator.planning.drafts import Draft
from coordinator.planning.errors import PlanError
from coordinator.planning.measured import NOTHING, Measured
from coordinator.purposes import DENSE, PROBE, TRIAL, is_measurement
from coordinator.runfile import RunFile
from coordinator.scoring.lineup import Lineup, SchemeLineup
from coordinator.scoring.outcome import BudgetFacts, SearchCost
from coordinator.text.prepared import Prepared
from coordinator.text_sections import Difficulty
from protocol.ids import Digest
from protocol.specs import ExpertSpec


@dataclass(frozen=True)
class Plan:
    """Specs, by what they are for; and what has to be measured before more can be named.

    `schemes` maps scheme and domain to an expert, `probes` a scheme to its probes; `trials` are the
    dense baseline's, of which `lost` ones diverged. `wants` are pairs of spec and domain whose dev
    loss is needed, `wants_posteriors` members and domain. `budgets` stands once all experts are
    named, `search` is what was trained beside them. With a `problem` the run cannot end.
    """

    schemes: Mapping[str, Mapping[str, ExpertSpec]]
    members: Mapping[str, tuple[Digest, ...]]
    probes: Mapping[str, tuple[ExpertSpec, ...]]
    averages: tuple[ExpertSpec, ...]
    trials: tuple[ExpertSpec, ...]
    dense: ExpertSpec | None
    rounds: Mapping[str, int]
    classes: Mapping[str, Difficulty]
    wants: tuple[tuple[Digest, str], ...]
    wants_posteriors: tuple[tuple[tuple[Digest, ...], str], ...]
    budgets: tuple[BudgetFacts, ...]
    search: tuple[SearchCost, ...] = ()
    lost: tuple[ExpertSpec, ...] = ()
    problem: str = ""

    def current_round(self, accepted: Collection[Digest]) -> int:
        """The first round with an expert that is not accepted, or not named yet; the last if all
        are."""
        missing = [
            number
            for domain, number in self.rounds.items()
            for experts in self.schemes.values()
            if domain not in experts or experts[domain].digest not in accepted
        ]
        return min(missing, default=max(self.rounds.values()))

    @property
    def is_complete(self) -> bool:
        """Whether every spec of the run is named."""
        return not (self.wants or self.wants_posteriors or self.problem)

    def assignments(self) -> list[tuple[ExpertSpec, tuple[str, ...]]]:
        """Each different spec that is to be trained once, with what it serves."""
        served: dict[Digest, list[str]] = {}
        specs: dict[Digest, ExpertSpec] = {}
        for label, some in self._served():
            for spec in some:
                specs[spec.digest] = spec
                labels = served.setdefault(spec.digest, [])
                if label not in labels:
                    labels.append(label)
        return [(spec, tuple(served[digest])) for digest, spec in specs.items()]

    def _served(self) -> Iterable[tuple[str, Iterable[ExpertSpec]]]:
        for scheme, experts in self.schemes.items():
            yield scheme, experts.values()
        for probes in self.probes.values():
            yield PROBE, probes
        yield TRIAL, self.trials
        yield DENSE, () if self.dense is None else (self.dense,)

    def lineup(self, seed: ExpertSpec) -> Lineup:
        """Who is compared, as far as they are named."""
        others = [
            spec
            for spec, served in self.assignments()
            if is_measurement(served) and spec not in self.lost
        ]
        return Lineup(
            seed=seed.digest,
            dense=None if self.dense is None else self.dense.digest,
            schemes={
                scheme: SchemeLineup(
                    members=self.members[scheme],
                    experts={domain: spec.digest for domain, spec in experts.items()},
                )
                for scheme, experts in self.schemes.items()
            },
            rounds=self.rounds,
            others=tuple(spec.digest for spec in (*others, *self.averages)),
            classes=self.classes,
            search=self.search,
        )


def make_plan(
    run: RunFile,
    prepared: Prepared,
    seeds: Mapping[str, ExpertSpec],
    classes: Mapping[str, Difficulty],
    measured: Measured = NOTHING,
) -> Plan:
    """What can be named now. `prepared` has the blends' shards beside the domains'.

    `seeds` are those of `recipes.seed_specs`, `classes` those of `difficulty.classify`. Raises
    PlanError when a class is missing, a scheme has no balanced solution, and when the schemes'
    budgets differ by over 0.5 % in the plan's unit.
    """
    if set(classes) != set(run.trained):
        raise PlanError(f"classes of {sorted(classes)}: expected {list(run.trained)}")
    drafts = {
        scheme: Draft(scheme, run, prepared, seeds, classes, measured).drawn()
        for scheme in run.plan.schemes
    }
    done = [draft for draft in drafts.values() if not draft.is_waiting]
    budgets = budgets_of(
        {draft.scheme: tuple(draft.experts.values()) for draft in done},
        {draft.scheme: tuple(draft.probes) for draft in done},
    )
    refuse_imbalance(run, budgets)
    baseline = Baseline(run, prepared, seeds, measured)
    first = next(iter(drafts.values()))
    if not first.is_waiting:
        baseline.draw(first.experts.values())
    probes: dict[str, tuple[ExpertSpec, ...]] = {
        scheme: tuple(draft.probes) for scheme, draft in drafts.items() if draft.probes
    }
    return Plan(
        schemes={scheme: draft.experts for scheme, draft in drafts.items()},
        members={scheme: draft.members for scheme, draft in drafts.items()},
        probes=probes,
        averages=tuple(
            {spec.digest: spec for draft in drafts.values() for spec in draft.averages}.values()
        ),
        trials=baseline.trials,
        dense=baseline.spec,
        rounds=rounds_of(run, classes),
        classes=classes,
        wants=(*(want for draft in drafts.values() for want in draft.wants), *baseline.wants),
        wants_posteriors=tuple(
            want for draft in drafts.values() for want in draft.wants_posteriors
        ),
        budgets=budgets if len(done) == len(drafts) else (),
        search=search_costs(probes, trials=baseline.trials, lost=baseline.lost),
        lost=baseline.lost,
        problem=baseline.problem,
    )
