"""Whether a mixture's files hold together: the two that say what it is say the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.mixing.evidence import StatisticsError
from shared.mixing.facts import FACTS, MixtureFacts
from shared.mixing.hub.configuration_hdee_moe import HdeeMoeConfig
from shared.mixing.ingredients import MixingError
from shared.tensorfiles import TensorFileError


@contextmanager
def damage_in(folder: Path) -> Iterator[None]:
    """What is wrong with a file of a mixture is a MixingError that names its folder, too."""
    try:
        yield
    except (TensorFileError, StatisticsError) as error:
        raise MixingError(
            f"{folder}: {error}: put the file back from a copy, or make the mixture again"
        ) from error


def check_agreement(folder: Path, facts: MixtureFacts, config: HdeeMoeConfig) -> None:
    """Raises MixingError where mixture.json and config.json differ: somebody has edited one.

    Both are written at once. The model computes by the second, experts join and leave by the first.
    """
    router, names = facts.recipe.router, [one.name for one in facts.experts]
    always_on = None if router.always_on is None else names.index(router.always_on)
    said: list[tuple[str, object, object]] = [
        ("experts", names, list(config.expert_names)),
        ("widths", [one.ffn_width for one in facts.experts], list(config.expert_widths)),
        ("owned", list(facts.owned), list(config.owned)),
        ("router.kind", router.kind, config.router),
        ("router.selection", router.selection, config.selection),
        ("router.top_k", router.top_k, config.gate_top_k),
        ("router.top_p", router.top_p, config.gate_top_p),
        ("router.threshold", router.threshold, config.threshold),
        ("router.always_on", always_on, config.always_on),
        ("router.sharpness", router.sharpness, config.prefix_sharpness),
        ("router.saturation", router.saturation, config.prefix_saturation),
        ("router.window", router.window, config.prefix_window),
        ("router.decay", router.decay, config.prefix_decay),
    ]
    for key, here, computed in said:
        if here != computed:
            raise MixingError(
                f"{folder / FACTS}: {key} {here!r:.200}, but config.json, which is what is "
                f"computed, has {computed!r:.200}: put both files back, or make the mixture again"
            )
