"""FFN widths of heterogeneous experts from a total width: the presets of HMoE, and others. Pure.

Experts of unequal width can be told apart by what they cost, if the router's losses make wide ones
dear (HMoE, arXiv 2408.10681, which found a largest-to-smallest ratio of some 2.5 to be best).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

WidthPreset = Literal["equal", "arithmetic", "geometric", "hybrid"]

_LEAST_FOR_HYBRID = 4


def preset_widths(
    preset: WidthPreset, *, num_experts: int, total_width: int, multiple: int = 1
) -> tuple[int, ...]:
    """Ascending widths of `num_experts` experts, in features, which add up to `total_width`.

    arithmetic: equal steps, the last to the first as 23 to 9. geometric: each twice the one before.
    hybrid: a quarter of the experts four times, a quarter twice as wide as the others. Each width
    is a multiple of `multiple`. Raises ValueError naming what does not go together.
    """
    if preset not in get_args(WidthPreset):
        raise ValueError(f"preset {preset!r}: expected one of {get_args(WidthPreset)}")
    if num_experts < 1:
        raise ValueError(f"num_experts {num_experts}: expected at least 1")
    if preset == "hybrid" and num_experts < _LEAST_FOR_HYBRID:
        raise ValueError(
            f"num_experts {num_experts}: expected at least 4 for 'hybrid', in quarters"
        )
    relative = _RELATIVE[preset](num_experts)
    return proportional_widths(relative, total_width=total_width, multiple=multiple)


def proportional_widths(
    relative: Sequence[float], *, total_width: int, multiple: int = 1
) -> tuple[int, ...]:
    """Widths in proportion to `relative`, in its order, which add up to `total_width`.

    Each is a multiple of `multiple`; what rounding leaves goes to those that lost most by it, to
    later ones first. Raises ValueError where an expert would get no width at all.
    """
    if not relative or not all(0 < one < math.inf for one in relative):
        raise ValueError(f"relative {list(relative)}: expected widths above 0, at least one")
    if multiple < 1 or total_width < 1 or total_width % multiple:
        raise ValueError(f"total_width {total_width}: expected a multiple of {multiple}, above 0")
    units = total_width // multiple
    exact = [one / sum(relative) * units for one in relative]
    widths = [math.floor(one) for one in exact]
    by_loss = sorted(range(len(exact)), key=lambda i: (widths[i] - exact[i], -i))
    for index in by_loss[: units - sum(widths)]:
        widths[index] += 1
    if min(widths) < 1:
        raise ValueError(
            f"total_width {total_width}: too little for widths in proportion to "
            f"{[round(one, 3) for one in relative]} in multiples of {multiple}"
        )
    return tuple(multiple * width for width in widths)


def _arithmetic(count: int) -> list[float]:
    return [9 + 14 * index / max(1, count - 1) for index in range(count)]


def _hybrid(count: int) -> list[float]:
    quarter = count // 4
    return [1.0] * (count - 2 * quarter) + [2.0] * quarter + [4.0] * quarter


_RELATIVE: Mapping[WidthPreset, Callable[[int], list[float]]] = {
    "equal": lambda count: [1.0] * count,
    "arithmetic": _arithmetic,
    "geometric": lambda count: [2.0**index for index in range(count)],
    "hybrid": _hybrid,
}
