"""Seed perplexity to classes of difficulty. Pure."""

from collections import Counter
from collections.abc import Mapping

from coordinator.planning.errors import PlanError
from coordinator.sections import Thresholds
from coordinator.text_sections import Difficulty

CLASSES: tuple[Difficulty, ...] = ("easy", "moderate", "difficult")


def classify(
    seed_perplexity: Mapping[str, float],
    pins: Mapping[str, Difficulty],
    *,
    thresholds: Thresholds | None = None,
    per_class: int | None = None,
) -> dict[str, Difficulty]:
    """Each domain's class by `seed_perplexity` on its dev text: its tercile, or by `thresholds`.

    Equal perplexities are ordered by name. In terciles, easy and difficult domains are equally
    many, the moderate ones as near to that as can be. A pin replaces the class of its domain alone;
    with `per_class`, each class has exactly so many domains, the pinned ones among them.
    Raises PlanError for a pin of an unknown domain, a perplexity that is not a number, and classes
    that cannot have `per_class` domains each.
    """
    unknown = sorted(pins.keys() - seed_perplexity.keys())
    if unknown:
        raise PlanError(f"pins {unknown}: expected domains of {sorted(seed_perplexity)}")
    for domain, perplexity in seed_perplexity.items():
        if not 1.0 <= perplexity < float("inf"):
            raise PlanError(f"{domain}: seed perplexity {perplexity}, expected 1 or more")
    ordered = sorted(seed_perplexity, key=lambda domain: (seed_perplexity[domain], domain))
    if thresholds is not None:
        classes = {name: _by(seed_perplexity[name], thresholds) for name in ordered} | dict(pins)
    elif per_class is None:
        classes = {**_terciles(ordered), **pins}
    else:
        classes = _filled(ordered, pins, per_class)
    counts = Counter(classes.values())
    if per_class is not None and any(counts[name] != per_class for name in CLASSES):
        sizes = ", ".join(f"{counts[name]} {name}" for name in CLASSES)
        raise PlanError(
            f"classes: {sizes} domains, expected {per_class} of each, one a round; pinned: "
            f"{dict(pins) or 'none'}"
        )
    return classes


def _by(perplexity: float, thresholds: Thresholds) -> Difficulty:
    if perplexity < thresholds.moderate_from:
        return "easy"
    return "moderate" if perplexity < thresholds.difficult_from else "difficult"


def _terciles(ordered: list[str]) -> dict[str, Difficulty]:
    count = len(ordered)
    return {domain: CLASSES[(6 * rank + 3) // (2 * count)] for rank, domain in enumerate(ordered)}


def _filled(
    ordered: list[str], pins: Mapping[str, Difficulty], per_class: int
) -> dict[str, Difficulty]:
    """Pins first; the others fill up easy, then moderate, then difficult, by perplexity."""
    classes = dict(pins)
    for domain in ordered:
        if domain not in pins:
            counts = Counter(classes.values())
            open_classes = [name for name in CLASSES if counts[name] < per_class]
            classes[domain] = open_classes[0] if open_classes else "difficult"
    return classes
