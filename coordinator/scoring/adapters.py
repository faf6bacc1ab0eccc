"""Whether an expert's weights are its parent's with its own adapter added. Pure."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from coordinator.scoring.verification import Rejected, find_changed_frozen
from protocol.specs import Lora
from shared.lora import adapter_names, is_merged

Tensors = Mapping[str, NDArray[np.generic]]


def find_unmerged(
    candidate: Tensors, parent: Tensors, adapter: Tensors, lora: Lora
) -> Rejected | None:
    """Refuse weights that training this adapter cannot have led to.

    Adapted matrices are the parent's with the adapter added, within the rounding of fp32; all else
    is bit-equal to the parent's. All tensors have the forms that the spec says.
    """
    frozen = set(parent)
    for name, weight in parent.items():
        a, b = adapter_names(name.removesuffix(".weight"))
        if a not in adapter:
            continue
        frozen.discard(name)
        pair = _floats(adapter[a]), _floats(adapter[b])
        if not is_merged(_floats(candidate[name]), _floats(weight), *pair, scale=lora.scale):
            return Rejected(
                "its weights are not its parent's with its adapter added",
                f"{name} differs from them by more than the rounding of fp32",
            )
    return find_changed_frozen(candidate, {name: parent[name] for name in frozen}, "lora")


def _floats(tensor: NDArray[np.generic]) -> NDArray[np.float32]:
    return np.asarray(tensor, dtype=np.float32)
