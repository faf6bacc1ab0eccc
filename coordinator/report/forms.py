"""Numbers and names as people read them. Pure."""

import re

from coordinator.report.values import Form
from shared.words import plain

ABSENT = "–"

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_PATTERNS: dict[Form, str] = {
    "count": "{:,}",
    "perplexity": "{:,.2f}",
    "bits": "{:.4f}",
    "points": "{:+.2f}",
    "ratio": "{:.4f}",
    "loss": "{:.3f}",
}
_SIGNS = {"\n": "⏎", "\r": "⏎", "\t": "⇥"}


def written(value: str | int | float | None, form: Form) -> str:
    """One value of a column of `form`, with a true minus sign and without control characters."""
    if value is None:
        return ABSENT
    if isinstance(value, str):
        return visible(value[:12] if form == "digest" else value)
    if form == "flops":
        return flops(value)
    if form == "share":
        return f"{100 * value:.1f} %"
    return _PATTERNS.get(form, "{}").format(value).replace("-", "−")


def points(value: float) -> str:
    """100 times nats per label, always with its sign."""
    return written(value, "points")


def flops(value: float) -> str:
    """Floating-point operations: `1.23 TFLOP`."""
    for unit, prefix in _PREFIXES:
        if value >= unit:
            return f"{value / unit:.3g} {prefix}FLOP"
    return f"{value:.3g} FLOP"


def visible(text: str) -> str:
    """Text on one line: line breaks as signs, other control characters as question marks."""
    return plain("".join(_SIGNS.get(char, char) for char in text))


def listed(names: tuple[str, ...]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def slug(*parts: object) -> str:
    """A name for a file or an anchor: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(map(str, parts))).strip("-.")
