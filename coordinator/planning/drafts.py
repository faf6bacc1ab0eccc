"""One scheme's experts, round after round, until something has to be measured. Pure."""

from collections.abc import Mapping

from coordinator.planning.allotment import Group, Probe, steps_by_slope, steps_in_proportion
from coordinator.planning.checks import first_too_wide
from coordinator.planning.dealing import order_of, rounds_of
from coordinator.planning.difficulty import CLASSES
from coordinator.planning.errors import PlanError
from coordinator.planning.measured import Measured
from coordinator.planning.recipes import Recipes
from coordinator.runfile import RunFile, rehearsed
from coordinator.sections import Scheme, WidthLabel
from coordinator.text.prepared import Prepared
from coordinator.text_sections import Difficulty
from protocol.ids import Digest
from protocol.specs import ExpertSpec
from shared.sizing import step_flops

SHARE_DIGITS = 6
"""Shares of an average are rounded to so many digits, so that its digest does not hang on noise."""

LEAST_SHARE = 10.0**-SHARE_DIGITS


class Draft:
    """One scheme's experts, round after round, until something has to be measured."""

    def __init__(
        self,
        scheme: Scheme,
        run: RunFile,
        prepared: Prepared,
        seeds: Mapping[str, ExpertSpec],
        classes: Mapping[str, Difficulty],
        measured: Measured,
    ) -> None:
        self.scheme = scheme
        self.experts: dict[str, ExpertSpec] = {}
        self.probes: list[ExpertSpec] = []
        self.averages: list[ExpertSpec] = []
        self.wants: list[tuple[Digest, str]] = []
        self.wants_posteriors: list[tuple[tuple[Digest, ...], str]] = []
        self._run = run
        self._plan = run.plan
        self._seeds = seeds
        self._classes = classes
        self._measured = measured
        self._recipes = Recipes(run, prepared)
        self._order = order_of(run, classes)
        self._rounds = rounds_of(run, classes)
        self._refuse_narrow_averages()
        self._steps = self._class_steps()

    @property
    def is_waiting(self) -> bool:
        return bool(self.wants or self.wants_posteriors)

    @property
    def members(self) -> tuple[Digest, ...]:
        """The final ensemble: along lineages each class's last expert, else every expert."""
        last = [domains[-1] for domains in self._order.values()] or sorted(self.experts)
        digests = [self.experts[domain].digest for domain in last if domain in self.experts]
        return tuple(dict.fromkeys(digests))

    def drawn(self) -> "Draft":
        """Names what can be named; returns itself."""
        for number in range(1, self._plan.rounds + 1):
            domains = sorted(name for name, one in self._rounds.items() if one == number)
            self._draw_round(number, domains)
            if self.is_waiting:
                break
        return self

    def _draw_round(self, number: int, domains: list[str]) -> None:
        parents = {domain: self._parent(domain, number) for domain in domains}
        known = {domain: parent for domain, parent in parents.items() if parent is not None}
        steps = {domain: self._steps[self._classes[domain]] for domain in known}
        if self.scheme == "adaptive":
            steps = self._steps_by_slope(known) if len(known) == len(domains) else {}
        for domain, count in steps.items():
            self.experts[domain] = self._expert(domain, count, known[domain])

    def _expert(self, domain: str, steps: int, parent: Digest) -> ExpertSpec:
        earlier = self._earlier(domain)
        text = rehearsed(domain) if earlier and self._plan.rehearsal else domain
        label = self._label(domain)
        return self._recipes.expert(domain, text=text, label=label, steps=steps, parent=parent)

    def _label(self, domain: str) -> WidthLabel:
        if self.scheme in ("MHe-IHo", "MHe-IHe"):
            return self._plan.widths.of(self._classes[domain])
        return "M"

    def _earlier(self, domain: str) -> tuple[str, ...]:
        """The domains that the domain's lineage trained on before."""
        order = self._order.get(self._classes[domain], ())
        return order[: order.index(domain)] if domain in order else ()

    def _parent(self, domain: str, number: int) -> Digest | None:
        """What the domain's expert branches from; None where that has to be measured first."""
        earlier = self._earlier(domain)
        if earlier:
            return self.experts[earlier[-1]].digest
        if self._plan.branch == "seed" or not self.experts:
            return self._seeds[self._label(domain)].digest
        return self._average(domain, number)

    def _average(self, domain: str, number: int) -> Digest | None:
        before = sorted(name for name in self.experts if self._rounds[name] < number)
        members = tuple(dict.fromkeys(self.experts[name].digest for name in before))
        weights = self._measured.posteriors.get((members, domain))
        if weights is None:
            self.wants_posteriors.append((members, domain))
            return None
        width_of = {one.digest: one.shape.ffn_width for one in self.experts.values()}
        needed = self._width(domain)
        rounded = {
            digest: round(weight, SHARE_DIGITS)
            for digest, weight in zip(members, weights, strict=True)
        }
        shares = {digest: share for digest, share in rounded.items() if share}
        if max(width_of[digest] for digest in shares) < needed:
            # What is wide enough counted for nothing: its further units are still the best known.
            shares |= {one: LEAST_SHARE for one in members if width_of[one] >= needed}
        widest = max(width_of[digest] for digest in shares)
        spec = self._recipes.average(domain, ffn_width=widest, shares=shares)
        self.averages.append(spec)
        return spec.digest

    def _width(self, domain: str) -> int:
        return self._run.widths.of(self._label(domain))

    def _refuse_narrow_averages(self) -> None:
        """Before anything is trained: what is known from the classes on need not wait for it."""
        if self._plan.branch != "average":
            return
        found = first_too_wide(
            [(number, self._width(domain)) for domain, number in self._rounds.items()]
        )
        if found is not None:
            number, width, widest = found
            raise PlanError(
                f"{self.scheme}: the first expert with an FFN width of {width} is in round "
                f"{number}, and those before it, whose average it branches from, have {widest} at "
                "most; expected a wider class in an earlier round"
            )

    def _class_steps(self) -> dict[Difficulty, int]:
        """Each class's steps; those of the adaptive scheme are found later."""
        plan = self._plan
        alike = dict.fromkeys(CLASSES, plan.homogeneous_steps)
        if plan.steps is None or self.scheme not in ("MHo-IHe", "MHe-IHe"):
            return alike
        if self.scheme == "MHo-IHe":
            return {difficulty: plan.steps.of(difficulty) for difficulty in CLASSES}
        used = [one for one in CLASSES if one in self._classes.values()]
        groups = [
            Group(
                name=difficulty,
                count=sum(one == difficulty for one in self._classes.values()),
                cost=self._cost(plan.widths.of(difficulty)),
                proportion=plan.steps.of(difficulty),
            )
            for difficulty in used
        ]
        budget = len(self._classes) * plan.homogeneous_steps * self._cost("M")
        most = self._run.recipe.schedule_steps or 2**53
        try:
            found = steps_in_proportion(groups, budget=budget, most=most)
        except PlanError as error:
            raise PlanError(f"{self.scheme}: {error}") from error
        warmup = self._run.recipe.warmup_steps
        if self._run.recipe.schedule == "annealed" and min(found.values()) < warmup:
            raise PlanError(
                f"{self.scheme}: steps {found}: expected at least recipe.warmup_steps {warmup}"
            )
        return alike | {difficulty: found[difficulty] for difficulty in used}

    def _cost(self, label: WidthLabel) -> float:
        """Of one step at a width, in the plan's unit."""
        if self._plan.unit == "ffn_steps":
            return float(self._run.widths.of(label))
        domain = next(iter(self._classes))
        parent = self._seeds["M"].digest
        steps = self._plan.homogeneous_steps
        return step_flops(
            self._recipes.expert(domain, text=domain, label=label, steps=steps, parent=parent)
        )

    def _steps_by_slope(self, parents: Mapping[str, Digest]) -> dict[str, int]:
        """Probes for all; once both of each are measured, everybody's steps."""
        assert self._plan.probe_steps is not None
        probes: dict[str, Probe] = {}
        for domain, parent in parents.items():
            pair = [self._expert(domain, steps, parent) for steps in self._plan.probe_steps]
            self.probes += pair
            losses = [self._measured.dev_loss.get((spec.digest, domain)) for spec in pair]
            self.wants += [
                (spec.digest, domain)
                for spec, loss in zip(pair, losses, strict=True)
                if loss is None
            ]
            first, second = losses
            if first is not None and second is not None:
                probes[domain] = Probe(
                    self._plan.probe_steps[0], first, self._plan.probe_steps[1], second
                )
        if len(probes) < len(parents):
            return {}
        total = len(parents) * self._plan.homogeneous_steps
        most = self._run.recipe.schedule_steps or total
        return steps_by_slope(probes, total=total, most=most)
