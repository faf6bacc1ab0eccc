"""What people see of a comparison: the same values as in mixing.json, as tables."""

from collections.abc import Iterator, Mapping, Sequence

from coordinator.mixing.outcome import GROUPS, MIXTURE, MixingResults, VariantScores
from coordinator.scoring.outcome import Comparison
from shared.tables import show, show_table

SHOWN_VARIANTS = 20


def show_results(results: MixingResults) -> None:
    """The variants, the chosen one beside all others with intervals, and what its router does."""
    show(
        f"scheme {results.scheme}: {len(results.experts)} experts, "
        + ", ".join(f"{one.name} ({one.ffn_width})" for one in results.experts)
    )
    show("\nvariants on dev text, geometric means of perplexities:\n")
    _show_variants(results.variants)
    for words, names in _by_reason(results.refused).items():
        show(f"not made: {', '.join(names)}: {words}")
    show(f"\nchosen on dev text (by {results.choose_by}): {results.chosen}")
    show("\non test text, perplexity:\n")
    columns = list(next(iter(results.perplexity.values())))
    rows = [
        *_rows(results.perplexity, columns),
        *_rows({f"all {name}": means for name, means in results.groups.items()}, columns),
    ]
    show_table(("text", *(f">{column}" for column in columns)), rows)
    show("\nthe mixture against the others, 100 x nats a token, with 95 % intervals:\n")
    _show_comparisons(results.comparisons, list(results.groups))
    show("\nwhat the router does on dev text, a token:\n")
    show_table(
        ("text", ">experts", ">parameters", ">FLOPs", "mean gates"),
        [
            (
                one.text,
                f"{one.experts:.2f}",
                f"{one.parameters / 1e6:.3f}M",
                f"{one.flops / 1e6:.3f}M",
                ", ".join(f"{name} {gate:.2f}" for name, gate in _heaviest(one.gates)),
            )
            for one in results.usage
        ],
    )


def _show_variants(variants: Sequence[VariantScores]) -> None:
    groups = [group for group in GROUPS if group in variants[0].groups]
    show_table(
        ("variant", *(f">{group}" for group in groups)),
        [
            (one.name, *(f"{one.groups[group]:.3f}" for group in groups))
            for one in variants[:SHOWN_VARIANTS]
        ],
    )
    if len(variants) > SHOWN_VARIANTS:
        show(f"and {len(variants) - SHOWN_VARIANTS} more in mixing.json")


def _by_reason(refused: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, words in refused.items():
        found.setdefault(words, []).append(name)
    return found


def _rows(
    table: "dict[str, dict[str, float]]", columns: Sequence[str]
) -> Iterator[tuple[str, ...]]:
    for name, values in table.items():
        yield name, *(f"{values[column]:.3f}" for column in columns)


def _show_comparisons(comparisons: Sequence[Comparison], groups: Sequence[str]) -> None:
    others = list(dict.fromkeys(one.b for one in comparisons if one.a == MIXTURE))
    found = {(one.b, one.where): one for one in comparisons if one.a == MIXTURE}
    show_table(
        ("against", *(f">{group}" for group in groups)),
        [(other, *(_cell(found[other, group]) for group in groups)) for other in others],
    )


def _cell(one: Comparison) -> str:
    words = f" {one.verdict}" if one.verdict in ("better", "worse") else ""
    return f"{one.difference:+.2f} [{one.low:+.2f} {one.high:+.2f}]{words}"


def _heaviest(gates: "dict[str, float]", count: int = 3) -> list[tuple[str, float]]:
    return sorted(gates.items(), key=lambda item: (-item[1], item[0]))[:count]
