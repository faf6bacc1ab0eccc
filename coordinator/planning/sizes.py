"""Where what makes models big, FFN widths or LoRA ranks, contradicts itself or the plan. Pure."""

from typing import Protocol

from coordinator.sections import Plan, Ranks, Recipe, Seed, Shape, Widths


class Sized(Protocol):
    """The sections of a run file that sizes depend on."""

    @property
    def shape(self) -> Shape: ...
    @property
    def widths(self) -> Widths: ...
    @property
    def ranks(self) -> Ranks | None: ...
    @property
    def seed(self) -> Seed: ...
    @property
    def recipe(self) -> Recipe: ...
    @property
    def plan(self) -> Plan: ...


def size_problems(run: Sized) -> list[str]:
    """One line for each problem, which names the key, the value and what was expected."""
    ranks = run.ranks
    if (run.recipe.trains == "lora") != (ranks is not None):
        return [
            f"recipe.trains: {run.recipe.trains!r} {'without' if ranks is None else 'with'} "
            f"[ranks]{'' if ranks is None else ' ' + _words(ranks)}: expected 'lora' exactly where "
            "ranks make experts big"
        ]
    if ranks is None:
        return _width_problems(run.widths)
    return _rank_problems(run, ranks)


def _width_problems(widths: Widths) -> list[str]:
    small, large = widths.S, widths.L
    if small is None or large is None:
        return [
            f"widths: {_words(widths)}: expected S, M and L, or M alone beside [ranks] and "
            "recipe.trains = 'lora'"
        ]
    if small < widths.M < large:
        return []
    return [f"widths: {_words(widths)}: expected S below M below L"]


def _rank_problems(run: Sized, ranks: Ranks) -> list[str]:
    shape, widths, problems = run.shape, run.widths, []
    if widths.S is not None or widths.L is not None:
        problems.append(
            f"widths: {_words(widths)} with ranks {_words(ranks)}: expected M alone, as ranks take "
            "the place of widths"
        )
    if not ranks.S < ranks.M < ranks.L:
        problems.append(f"ranks: {_words(ranks)}: expected S below M below L")
    kv_size = shape.hidden_size // shape.num_heads * (shape.num_kv_heads or shape.num_heads)
    least = min(shape.hidden_size, kv_size, widths.M)
    if least < ranks.L:
        problems.append(
            f"ranks.L: {ranks.L}: expected at most {least}, the least side of a layer's matrices "
            f"(hidden size {shape.hidden_size}, keys and values {kv_size}, FFN {widths.M})"
        )
    if len(set(ranks.projections)) != len(ranks.projections):
        problems.append(f"ranks.projections: {list(ranks.projections)}: expected each once")
    if run.seed.kind == "per-size":
        problems.append(
            f"seed.kind: 'per-size' with ranks {_words(ranks)}: there is one width, {widths.M}, "
            "and so one seed; expected 'nested' or 'pretrained'"
        )
    if run.plan.unit == "ffn_steps":
        problems.append(
            f"plan.unit: 'ffn_steps' with ranks {_words(ranks)}: the FFN width is {widths.M} for "
            "all, so that this unit does not tell experts apart; expected 'flops'"
        )
    return problems


def _words(sizes: Widths | Ranks) -> str:
    values = {"S": sizes.S, "M": sizes.M, "L": sizes.L}
    return ", ".join(f"{label} {value}" for label, value in values.items() if value is not None)
