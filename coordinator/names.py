"""What people call a checkpoint: its folder's name, and its name in tables and logs."""

from protocol.specs import ExpertSpec


def checkpoint_name(spec: ExpertSpec, *, ffn_width: int | None = None) -> str:
    """Such as `python-ffn640-1a2b3c4d`: domain, FFN width, and the start of the spec's digest.

    With LoRA its rank is in the width's place: `python-rank8-1a2b3c4d`. A seed is called `seed`,
    the dense baseline `dense`. `ffn_width` names a prefix of a nested seed; None is the full width.
    """
    kinds = {"seed": "seed", "pretrained": "seed", "dense": "dense"}
    what = kinds.get(spec.kind, spec.domain)
    if spec.kind == "average":
        what = f"average.{spec.domain}"
    size = f"ffn{ffn_width or spec.shape.ffn_width}"
    if spec.lora is not None:
        size = f"rank{spec.lora.rank}"
    return f"{what}-{size}-{spec.digest[:8]}"
