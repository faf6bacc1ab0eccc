"""What schemes cost, and the proof that they cost the same. Pure."""

from collections.abc import Mapping, Sequence

from coordinator.planning.allotment import MAX_IMBALANCE
from coordinator.planning.errors import PlanError
from coordinator.runfile import RunFile
from coordinator.scoring.outcome import BudgetFacts, SearchCost
from protocol.specs import ExpertSpec
from shared.sizing import train_flops


def budgets_of(
    schemes: Mapping[str, Sequence[ExpertSpec]], probes: Mapping[str, Sequence[ExpertSpec]]
) -> tuple[BudgetFacts, ...]:
    """What the experts of each scheme cost, and what a scheme's probes cost beside that.

    A probe is the beginning of its expert's own training: what it costs beyond that is nothing
    where the worker goes on from it, and all of it where it does not. The latter is told.
    """
    ffn_steps = {
        scheme: sum(spec.shape.ffn_width * spec.train.num_steps for spec in experts)
        for scheme, experts in schemes.items()
    }
    flops = {scheme: sum(map(train_flops, experts)) for scheme, experts in schemes.items()}
    first = next(iter(schemes), "")
    return tuple(
        BudgetFacts(
            scheme=scheme,
            ffn_steps=ffn_steps[scheme],
            flops=flops[scheme],
            ffn_steps_ratio=ffn_steps[scheme] / ffn_steps[first],
            flops_ratio=flops[scheme] / flops[first],
            probe_flops=float(sum(map(train_flops, probes.get(scheme, ())))),
        )
        for scheme in schemes
    )


def search_costs(
    probes: Mapping[str, Sequence[ExpertSpec]],
    *,
    trials: Sequence[ExpertSpec],
    lost: Sequence[ExpertSpec],
) -> tuple[SearchCost, ...]:
    """What is trained to find how to train, at most: a line for each scheme's probes, and one for
    the trials of the dense baseline, of which `lost` ones diverged."""
    groups = {f"probes of {scheme}": some for scheme, some in probes.items()}
    groups |= {"trials of the dense baseline": trials} if trials else {}
    return tuple(
        SearchCost(
            purpose=purpose,
            num_trainings=len(some),
            flops=float(sum(map(train_flops, some))),
            diverged=tuple(one.train.peak_learning_rate for one in some if one in lost),
        )
        for purpose, some in groups.items()
    )


def refuse_imbalance(run: RunFile, budgets: Sequence[BudgetFacts]) -> None:
    """Raises PlanError, with all numbers, when a budget is over 0.5 % from the first scheme's."""
    flops = run.plan.unit == "flops"
    ratios = {row.scheme: row.flops_ratio if flops else row.ffn_steps_ratio for row in budgets}
    if all(abs(ratio - 1) <= MAX_IMBALANCE for ratio in ratios.values()):
        return
    rows = "; ".join(
        f"{row.scheme}: {row.flops:.4g} flops ({row.flops_ratio:.4f}), "
        f"{row.ffn_steps} ffn_steps ({row.ffn_steps_ratio:.4f})"
        for row in budgets
    )
    raise PlanError(
        f"budgets differ by over {MAX_IMBALANCE:.1%} in {run.plan.unit}, with the ratio to the "
        f"first scheme in brackets: {rows}"
    )
