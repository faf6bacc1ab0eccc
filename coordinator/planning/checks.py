"""Where a run file's plan, baseline and domains contradict each other, before anything is made."""

from collections import Counter
from collections.abc import Collection, Mapping

from coordinator.planning.difficulty import CLASSES
from coordinator.sections import Dense, Plan, Recipe, Seed, Widths
from coordinator.text_sections import Domain


def plan_problems(
    plan: Plan,
    recipe: Recipe,
    seed: Seed,
    dense: Dense | None,
    domains: Mapping[str, Domain],
    widths: Widths,
) -> list[str]:
    """One line for each problem, which names the key, the value and what was expected."""
    trained = {name: one for name, one in domains.items() if one.role == "trained"}
    return [
        *_scheme_problems(plan, recipe),
        *_schedule_problems(plan, recipe),
        *_round_problems(plan, seed, trained),
        *_branch_problems(plan, trained, widths),
        *_pin_problems(plan, domains, trained),
        *_dense_problems(dense),
    ]


def _scheme_problems(plan: Plan, recipe: Recipe) -> list[str]:
    problems = []
    schemes = list(plan.schemes)
    if len(set(schemes)) != len(schemes):
        problems.append(f"plan.schemes: {schemes}: expected each scheme once")
    if bool({"MHo-IHe", "MHe-IHe"} & set(schemes)) != (plan.steps is not None):
        problems.append(
            f"plan: steps {plan.steps and plan.steps.model_dump()} with schemes {schemes}: "
            "expected steps exactly when MHo-IHe or MHe-IHe is among them"
        )
    if ("adaptive" in schemes) != (plan.probe_steps is not None):
        problems.append(
            f"plan: probe_steps {plan.probe_steps} with schemes {schemes}: expected two numbers of "
            "steps exactly when adaptive is among them"
        )
    if plan.probe_steps is not None:
        first, second = plan.probe_steps
        if not first < second < plan.homogeneous_steps:
            problems.append(
                f"plan.probe_steps: {list(plan.probe_steps)}: expected ascending, below "
                f"homogeneous_steps {plan.homogeneous_steps}"
            )
        if recipe.schedule != "paper":
            problems.append(
                f"recipe.schedule: {recipe.schedule!r} with the scheme adaptive, whose probes are "
                "the beginning of the training that they are for: expected 'paper'"
            )
    if plan.classes and plan.classes.moderate_from > plan.classes.difficult_from:
        problems.append(
            f"plan.classes: moderate_from {plan.classes.moderate_from} is more than difficult_from "
            f"{plan.classes.difficult_from}"
        )
    return problems


def _schedule_problems(plan: Plan, recipe: Recipe) -> list[str]:
    steps = {"plan.homogeneous_steps": plan.homogeneous_steps}
    if plan.steps is not None:
        steps |= {f"plan.steps.{name}": value for name, value in plan.steps.model_dump().items()}
    if plan.probe_steps is not None:
        steps["plan.probe_steps"] = plan.probe_steps[1]
    if recipe.schedule == "annealed":
        problems = [
            f"{key}: {value} is less than recipe.warmup_steps {recipe.warmup_steps}"
            for key, value in steps.items()
            if value < recipe.warmup_steps
        ]
        if recipe.schedule_steps is not None:
            problems.append(
                f"recipe.schedule_steps: {recipe.schedule_steps} with schedule 'annealed', whose "
                "cosines end with each expert's last step: expected none"
            )
        return problems
    if recipe.schedule_steps is None:
        return ["recipe.schedule_steps: missing; schedule 'paper' needs it"]
    return [
        f"{key}: {value} is more than recipe.schedule_steps {recipe.schedule_steps}"
        for key, value in {**steps, "recipe.warmup_steps": recipe.warmup_steps}.items()
        if value > recipe.schedule_steps
    ]


def _round_problems(plan: Plan, seed: Seed, trained: Mapping[str, Domain]) -> list[str]:
    problems = []
    if not trained:
        return ["domains: all are held out, expected one to train on"]
    needed = plan.rounds * len(CLASSES)
    if plan.experts == "lineages" and len(trained) != needed:
        problems.append(
            f"plan.rounds: {plan.rounds} with experts = 'lineages' and {len(trained)} trained "
            f"domains: expected {needed}, one of each class in each round"
        )
    if plan.experts == "keep-all" and plan.rounds > len(trained):
        problems.append(f"plan.rounds: {plan.rounds}: expected at most {len(trained)} domains")
    if plan.rehearsal and (plan.experts != "lineages" or plan.rounds == 1):
        problems.append(
            f"plan.rehearsal: {plan.rehearsal}: expected experts = 'lineages' and several rounds, "
            "as there is no earlier text otherwise"
        )
    if plan.branch == "average" and (plan.experts != "keep-all" or plan.rounds == 1):
        problems.append(
            "plan.branch: 'average': expected experts = 'keep-all' and several rounds, as there is "
            "nothing else to branch from otherwise"
        )
    if plan.branch == "average" and seed.kind == "per-size":
        problems.append(
            "plan.branch: 'average' with seed.kind 'per-size': seeds that were trained apart have "
            "no basis in common; expected 'nested' or 'pretrained'"
        )
    return problems


def first_too_wide(placed: Collection[tuple[int, int]]) -> tuple[int, int, int] | None:
    """The first of some experts, pairs of round and width, that is wider than all of the rounds
    before: its round, its width and theirs; None if there is no such one.

    An average is as wide as the widest that it is made of: nothing wider can branch from it.
    """
    for number, width in sorted(placed):
        widest = max((one for earlier, one in placed if earlier < number), default=width)
        if width > widest:
            return number, width, widest
    return None


def _branch_problems(plan: Plan, trained: Mapping[str, Domain], widths: Widths) -> list[str]:
    """Averages that are too narrow to branch from, as far as pins tell: classes decide it."""
    schemes = [one for one in plan.schemes if one in ("MHe-IHo", "MHe-IHe")]
    pins = [(one.difficulty, one.round or 1) for one in trained.values()]
    placed = [(number, widths.of(plan.widths.of(one))) for one, number in pins if one is not None]
    found = first_too_wide(placed) if len(placed) == len(pins) else None
    if plan.branch != "average" or not schemes or found is None:
        return []
    number, width, widest = found
    return [
        f"plan.branch: 'average' with schemes {schemes}: the first expert with an FFN width of "
        f"{width} is pinned to round {number}, and those before it, whose average it branches "
        f"from, have {widest} at most; expected one as wide in an earlier round"
    ]


def _pin_problems(
    plan: Plan, domains: Mapping[str, Domain], trained: Mapping[str, Domain]
) -> list[str]:
    problems = [
        f"domains.{name}: {key} is pinned, and role is held-out: expected one of them"
        for name, one in domains.items()
        for key in ("difficulty", "round")
        if name not in trained and getattr(one, key) is not None
    ]
    problems += [
        f"domains.{name}.round: {one.round}: expected at most plan.rounds {plan.rounds}"
        for name, one in trained.items()
        if one.round is not None and one.round > plan.rounds
    ]
    if plan.experts == "keep-all":
        return problems
    classes = Counter(one.difficulty for one in trained.values() if one.difficulty is not None)
    problems += [
        f"domains: {count} pinned as {name}: expected at most {plan.rounds}, one a round"
        for name, count in classes.items()
        if count > plan.rounds
    ]
    rounds = Counter(one.round for one in trained.values() if one.round is not None)
    problems += [
        f"domains: {count} pinned to round {number}: expected at most {len(CLASSES)}, one a class"
        for number, count in rounds.items()
        if count > len(CLASSES)
    ]
    places = Counter(
        (one.round, one.difficulty)
        for one in trained.values()
        if one.round is not None and one.difficulty is not None
    )
    return problems + [
        f"domains: {count} pinned as {difficulty} to round {number}: expected one"
        for (number, difficulty), count in places.items()
        if count > 1
    ]


def _dense_problems(dense: Dense | None) -> list[str]:
    if dense is None:
        return []
    rates = list(dense.learning_rates)
    if len(set(rates)) != len(rates):
        return [f"dense.learning_rates: {rates}: expected each once"]
    if (len(rates) > 1) != (dense.trial_steps is not None):
        return [
            f"dense: trial_steps {dense.trial_steps} with {len(rates)} learning_rates: expected "
            "trial_steps exactly when there are several to choose from"
        ]
    return []
