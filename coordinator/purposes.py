"""What an assignment is for that is no scheme's expert. Pure.

An assignment serves schemes, by their names, and these purposes beside them.
"""

from collections.abc import Collection

PROBE, TRIAL, DENSE = "probe", "dense trial", "dense"
"""A beginning of an expert that shows its slope; a learning rate that the dense baseline may take;
the dense baseline."""


def is_measurement(served: Collection[str]) -> bool:
    """Whether an assignment is there to be measured and nothing else: bad news is a result, too.

    Only trusted workers are given one, as nothing tells an honest bad result from a false one.
    """
    return bool(served) and set(served) <= {PROBE, TRIAL}
