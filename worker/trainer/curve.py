"""The learning curve that a trainer keeps: up to 64 points, however long the training. Pure.

Which steps have a point follows from the newest step alone, so that a resumed training has the
curve of one that was never interrupted. Points that another worker's checkpoint has at other steps
are dropped: there would be more of them than a curve holds.
"""

from protocol.manifests import MAX_CURVE_POINTS, CurvePoint

Points = tuple[CurvePoint, ...]

_DIGITS = 6
"""Decimals of a loss, in nats: enough for a drawing, and 64 points fit into the state."""


def stride(step: int) -> int:
    """The power of two such that its multiples up to `step` leave room for a last point."""
    found = 1
    while step // found >= MAX_CURVE_POINTS:
        found *= 2
    return found


def extended(curve: Points, *, step: int, loss: float) -> Points:
    """`curve`, which knows all steps before `step`, with what is to be kept of it and of `step`."""
    every = stride(step)
    kept = tuple(p for p in curve if p.step % every == 0)
    return kept if step % every else (*kept, CurvePoint(step=step, loss=round(loss, _DIGITS)))


def ended(curve: Points, *, step: int, loss: float | None) -> Points:
    """`curve` with the point of the last step."""
    every = stride(step)
    curve = tuple(p for p in curve if p.step == step or p.step % every == 0)
    if loss is None or (curve and curve[-1].step == step):
        return curve
    return (*curve, CurvePoint(step=step, loss=round(loss, _DIGITS)))
