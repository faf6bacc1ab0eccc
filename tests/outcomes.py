"""Results of runs that never ran: everything in them fits together as in a real one."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordinator.scoring.outcome import (
    ALL,
    DENSE_COLUMN,
    HELD_OUT,
    OWN,
    SEED_COLUMN,
    WITH_SEED,
    BudgetFacts,
    CheckpointFacts,
    Comparison,
    DomainScores,
    Measure,
    PosteriorTrace,
    Remembered,
    Results,
    SchemeScores,
    Verdict,
)
from protocol.manifests import CurvePoint
from protocol.specs import Kind, ModelShape, TrainSpec

SCHEMES = ("MHo-IHo", "MHo-IHe", "MHe-IHo", "MHe-IHe", "adaptive")
NAMES = (
    "python",
    "javascript",
    "licences",
    "bible",
    "medicine",
    "law",
    "chemistry",
    "recipes",
    "music",
    "shakespeare",
    "man-pages",
    "changelogs",
    "unicode-names",
    "css",
    "sql",
    "latex",
    "rfc",
    "dictionaries",
    "translations",
    "typescript-definitions",
    "test-fixtures",
)
SEED = "seed-ffn192-00000000"
WIDTHS = {"easy": 144, "moderate": 192, "difficult": 240}
STEPS = {"easy": 300, "moderate": 400, "difficult": 500}
HARMFUL_WORKER = "<script>alert('anna')</script> & co\u202e\x07"
HARMFUL_TOKENS = (
    "▁<script>",
    "$x^2$",
    "\n",
    "</td>",
    "&amp;",
    "語",
    "🙂",
    "\t",
    "$5",
    "_under",
    "\x00",
)
CLASSES = ("easy", "moderate", "difficult")


@dataclass(frozen=True)
class Case:
    """What a run is like. `lineages` with several rounds have something to forget."""

    own: int = 3
    held_out: int = 2
    schemes: tuple[str, ...] = SCHEMES[:2]
    rounds: int = 1
    has_dense: bool = True
    has_probes: bool = False
    rng_seed: int = 1
    worker: str = "anna's computer"
    tokens: tuple[str, ...] = ("▁def", " f", "(", "x", ")", ":", "\n")
    num_traces: int = 1
    points: int = 6

    @property
    def domains(self) -> tuple[str, ...]:
        """Own ones first."""
        names = [*NAMES, *(f"domain-{number}" for number in range(len(NAMES), 64))]
        return tuple(names[: self.own + self.held_out])

    def round_of(self, domain: str) -> int:
        """Each round takes an equal part of the own domains."""
        return 1 + self.domains.index(domain) * self.rounds // self.own

    def class_of(self, domain: str) -> str:
        """Easy, moderate and difficult in turn."""
        return CLASSES[self.domains.index(domain) % 3]


def make_results(case: Case) -> Results:
    """Results as `case` says; other seeds of randomness give other numbers of the same form."""
    return _Maker(case).results()


def write_run(folder: Path, results: Results) -> Path:
    """A run's folder with its run file and `results` as the scorer leaves them."""
    state = folder / "state"
    state.mkdir(parents=True)
    contents = {"table": {"columns": [], "rows": []}, **results.model_dump(mode="json")}
    (state / "results.json").write_text(json.dumps(contents, ensure_ascii=False))
    return state / "results.json"


class _Maker:
    def __init__(self, case: Case) -> None:
        self.case = case
        self.random = np.random.default_rng(case.rng_seed)
        self.own = case.domains[: case.own]
        self.text = np.random.default_rng(5)
        self.base = {name: math.exp(self.text.uniform(2.0, 5.5)) for name in case.domains}
        self.dense = "all-ffn192-dddddddd" if case.has_dense else None

    def results(self) -> Results:
        case = self.case
        experts = {
            scheme: {domain: self._expert(scheme, domain) for domain in self.own}
            for scheme in case.schemes
        }
        checkpoints = self._checkpoints(experts)
        models = [one.name for one in checkpoints]
        domains = tuple(self._domain(domain, experts, models) for domain in case.domains)
        return Results(
            run="demo",
            rng_seed=case.rng_seed,
            seed=SEED,
            dense=self.dense,
            schemes=experts,
            members={scheme: tuple(found.values()) for scheme, found in experts.items()},
            unit="flops",
            budgets=self._budgets(experts, checkpoints),
            checkpoints=checkpoints,
            domains=domains,
            comparisons=tuple(self._comparisons(domains)),
            remembered=tuple(self._remembered(experts)),
            traces=self._traces(experts),
            versions={"hdee": "0.1.0", "torch": "2.6.0", "numpy": "2.1.0"},
            digests={
                "run_file": digest("run file", case.rng_seed),
                "tokenizer": digest("tokenizer"),
                "split_key": digest("split key"),
            },
        )

    def _width(self, scheme: str, domain: str) -> int:
        return WIDTHS[self.case.class_of(domain)] if scheme.startswith("MHe") else 192

    def _steps(self, scheme: str, domain: str) -> int:
        return STEPS[self.case.class_of(domain)] if scheme.endswith(("IHe", "adaptive")) else 400

    def _expert(self, scheme: str, domain: str) -> str:
        """The same one in all schemes that give the domain the same width and steps."""
        width, steps = self._width(scheme, domain), self._steps(scheme, domain)
        return f"{domain}-ffn{width}-{digest(domain, width, steps)[:8]}"

    def _checkpoints(self, experts: dict[str, dict[str, str]]) -> tuple[CheckpointFacts, ...]:
        found = {SEED: self._facts(SEED, "seed", "all", 192, 600, ())}
        if self.dense is not None:
            found[self.dense] = self._facts(self.dense, "dense", "all", 192, 1200, ())
        for scheme, own in experts.items():
            for domain, name in own.items():
                serves = tuple(one for one in experts if experts[one][domain] == name)
                width, steps = self._width(scheme, domain), self._steps(scheme, domain)
                found[name] = self._facts(name, "expert", domain, width, steps, serves)
        for domain in self.own if self.case.has_probes else ():
            for steps in (50, 100):
                name = f"{domain}-ffn192-{digest(domain, steps)[:8]}"
                found[name] = self._facts(name, "expert", domain, 192, steps, ())
        return tuple(found.values())

    def _facts(
        self, name: str, kind: Kind, domain: str, width: int, steps: int, serves: Sequence[str]
    ) -> CheckpointFacts:
        own = domain in self.own
        start = math.log(self.base[domain]) if own else 6.0
        at = np.linspace(0, steps, self.case.points).round().astype(int)
        losses = start - 0.9 * (1 - np.exp(-at / 200)) + self.random.normal(0, 0.02, len(at))
        return CheckpointFacts(
            name=name,
            kind=kind,
            domain=domain,
            round=self.case.round_of(domain) if own else None,
            spec=digest("spec", name),
            file=digest("file", name, self.case.rng_seed),
            parent=None if kind == "seed" else SEED,
            ingredients=(),
            shape=ModelShape(
                vocab_size=2048,
                hidden_size=64,
                num_layers=2,
                num_heads=4,
                ffn_width=width,
                context_length=128,
            ),
            trains="all",
            train=TrainSpec(
                num_steps=steps,
                schedule_steps=1200,
                warmup_steps=20,
                peak_learning_rate=1e-3,
                final_learning_rate=1e-4,
                micro_batch=4,
                accumulation=1,
                sequence_length=128,
                clip_norm=1.0,
                rng_seed=self.case.rng_seed,
                compile=False,
            ),
            flops=6.0 * 128 * 4 * steps * (300_000 + 400 * width),
            worker=self.case.worker,
            schemes=tuple(serves),
            curve=tuple(
                CurvePoint(step=int(step), loss=float(loss))
                for step, loss in zip(at, losses, strict=True)
            ),
            dev_perplexity=(
                {domain: float(self.base[domain] * math.exp(-0.002 * steps))}
                if own
                else dict(self.base)
            ),
        )

    def _budgets(
        self, experts: dict[str, dict[str, str]], checkpoints: Sequence[CheckpointFacts]
    ) -> tuple[BudgetFacts, ...]:
        by_name = {one.name: one for one in checkpoints}
        costs = {
            scheme: (
                sum(by_name[name].shape.ffn_width * by_name[name].train.num_steps for name in own),
                sum(by_name[name].flops for name in own),
            )
            for scheme, own in ((scheme, list(own.values())) for scheme, own in experts.items())
        }
        first = costs[self.case.schemes[0]]
        return tuple(
            BudgetFacts(
                scheme=scheme,
                ffn_steps=steps,
                flops=flops,
                ffn_steps_ratio=steps / first[0],
                flops_ratio=flops / first[1],
                probe_flops=1e9 if scheme == "adaptive" else 0.0,
            )
            for scheme, (steps, flops) in costs.items()
        )

    def _columns(self) -> tuple[str, ...]:
        dense = (DENSE_COLUMN, DENSE_COLUMN + WITH_SEED) if self.dense else ()
        schemes = self.case.schemes
        return (SEED_COLUMN, *dense, *schemes, *(scheme + WITH_SEED for scheme in schemes))

    def _domain(
        self, domain: str, experts: dict[str, dict[str, str]], models: Sequence[str]
    ) -> DomainScores:
        own = domain in self.own
        base = self.base[domain]
        gain = 0.25 if own else -0.06

        def measure(shift: float) -> Measure:
            value = base * math.exp(-shift + float(self.random.normal(0, 0.015)))
            return Measure(perplexity=value, bits_per_byte=math.log2(value) / 3.7)

        columns = {SEED_COLUMN: Measure(perplexity=base, bits_per_byte=math.log2(base) / 3.7)}
        for name in self._columns()[1:]:
            place = SCHEMES.index(name.removesuffix(WITH_SEED)) if name[0] in "Ma" else -3
            columns[name] = measure(max(gain, 0.02 * name.endswith(WITH_SEED)) + 0.006 * place)
        alone = {name: measure(0.2 if name.startswith(domain) else -0.1) for name in models}
        for group in (tied := self._tied(domain, experts)):
            columns |= dict.fromkeys(group, columns[group[0]])
        return DomainScores(
            domain=domain,
            role="trained" if own else "held-out",
            round=self.case.round_of(domain) if own else None,
            difficulty=self.case.class_of(domain) if own else None,  # type: ignore[arg-type]
            seed_dev_perplexity=base * 1.01,
            num_documents=40,
            num_labels=20_000,
            num_bytes=74_000,
            columns=columns,
            models=alone,
            schemes={
                scheme: SchemeScores(
                    modes={
                        mode: measure(gain)
                        for mode in ("average", "posterior", "cached-prior", "posterior+seed")
                    },
                    best_single=found[domain] if own else next(iter(found.values())),
                    oracle=min(found.values(), key=lambda name: alone[name].perplexity),
                )
                for scheme, found in experts.items()
            },
            tied=tied,
        )

    def _tied(self, domain: str, experts: dict[str, dict[str, str]]) -> tuple[tuple[str, ...], ...]:
        groups: dict[object, list[str]] = {}
        for scheme, found in experts.items():
            basis = found[domain] if domain in found else tuple(sorted(set(found.values())))
            groups.setdefault(basis, []).append(scheme)
        tied = [tuple(group) for group in groups.values() if len(group) > 1]
        return (*tied, *(tuple(name + WITH_SEED for name in group) for group in tied))

    def _pairs(self) -> list[tuple[str, str]]:
        first, *others = self.case.schemes
        pairs = []
        for ending in ("", WITH_SEED):
            pairs += [(name + ending, first + ending) for name in others]
            if self.dense is not None:
                pairs += [(name + ending, DENSE_COLUMN + ending) for name in self.case.schemes]
                pairs.append((DENSE_COLUMN + ending, SEED_COLUMN))
            pairs += [(name + ending, SEED_COLUMN) for name in self.case.schemes]
        return pairs

    def _comparisons(self, domains: Sequence[DomainScores]) -> list[Comparison]:
        places = [(one.domain, [one]) for one in domains]
        for group, roles in ((OWN, ["trained"]), (HELD_OUT, ["held-out"])):
            places.append((group, [one for one in domains if one.role in roles]))
        places.append((ALL, list(domains)))
        return [
            self._compare(pair, where, members)
            for where, members in places
            if members
            for pair in self._pairs()
        ]

    def _compare(
        self, pair: tuple[str, str], where: str, domains: Sequence[DomainScores]
    ) -> Comparison:
        a, b = pair
        differences = [
            100 * math.log(one.columns[a].perplexity / one.columns[b].perplexity) for one in domains
        ]
        mean = math.fsum(differences) / len(differences)
        reach = abs(float(self.random.normal(1.2, 0.2))) / math.sqrt(len(domains))
        low, high = mean - reach, mean + reach
        verdict: Verdict = "better" if high < 0 else "worse" if low > 0 else "unclear"
        if all(any(a in group and b in group for group in one.tied) for one in domains):
            verdict = "tie"
        return Comparison(
            a=a,
            b=b,
            where=where,
            num_domains=len(domains),
            difference=mean,
            low=low,
            high=high,
            verdict=verdict,
        )

    def _remembered(self, experts: dict[str, dict[str, str]]) -> list[Remembered]:
        """Lineages by class: the expert of a domain knows the domains of its class so far."""
        found = []
        if self.case.rounds == 1:
            return []
        for scheme, own in experts.items():
            for domain, expert in own.items():
                earlier = [
                    other
                    for other in self.own
                    if self.case.class_of(other) == self.case.class_of(domain)
                    and self.case.round_of(other) <= self.case.round_of(domain)
                ]
                for other in earlier:
                    age = self.case.round_of(domain) - self.case.round_of(other)
                    shift = -0.25 + 0.12 * age + float(self.random.normal(0, 0.01))
                    found.append(
                        Remembered(
                            scheme=scheme,
                            expert=expert,
                            after_round=self.case.round_of(domain),
                            domain=other,
                            trained_in=self.case.round_of(other),
                            perplexity=self.base[other] * math.exp(shift),
                            seed=self.base[other],
                        )
                    )
        return found

    def _traces(self, experts: dict[str, dict[str, str]]) -> tuple[PosteriorTrace, ...]:
        traces = []
        for number in range(self.case.num_traces):
            scheme = self.case.schemes[-1]
            members = tuple(dict.fromkeys(experts[scheme].values()))
            logits = self.random.normal(0, 0.5, (len(members), len(self.case.tokens)))
            logits[number % len(members)] += 0.25
            weights = np.exp(np.cumsum(logits, axis=1))
            weights /= weights.sum(axis=0)
            traces.append(
                PosteriorTrace(
                    scheme=scheme,
                    domain=self.case.domains[number],
                    members=members,
                    tokens=self.case.tokens,
                    weights=tuple(tuple(map(float, row)) for row in weights),
                )
            )
        return tuple(traces)


def digest(*parts: object) -> str:
    """A digest like any other."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
