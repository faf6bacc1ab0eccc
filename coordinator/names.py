"""What people call a checkpoint: its folder's name, and its name in tables and logs."""

from protocol.specs import ExpertSpec


def checkpoint_name(spec: ExpertSpec, *, ffn_width: int | None = None) -> str:
    """Such as `python-ffn640-1a2b3c4d`: domain, FFN width, and the start of the spec's digest.

    A seed is called `seed`. `ffn_width` names a prefix of a nested seed; None is the full width.
    """
    what = "seed" if spec.kind == "seed" else spec.domain
    return f"{what}-ffn{ffn_width or spec.shape.ffn_width}-{spec.digest[:8]}"
