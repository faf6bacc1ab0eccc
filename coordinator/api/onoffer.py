"""Which steps the run's work is made of, for newcomers to measure their speed with."""

from collections import Counter

from coordinator.ledger.queries import AssignmentRow
from protocol.assignments import FINAL
from protocol.specs import StepShape
from shared.sizing import step_flops


class StepsOnOffer:
    """The steps of the work that is not finished and that anybody may do.

    What others do counts: it may come back. So does what waits for its parent.
    """

    def __init__(self) -> None:
        self._of: dict[str, StepShape] = {}
        self._uses: Counter[StepShape] = Counter()
        self._flops: dict[StepShape, float] = {}

    def put(self, row: AssignmentRow) -> None:
        """Adds an assignment, or replaces what was known of it."""
        before = self._of.pop(row.assignment, None)
        if before is not None:
            self._uses[before] -= 1
            if not self._uses[before]:
                del self._uses[before], self._flops[before]
        if row.state in FINAL or row.owner is not None:
            return
        step = row.spec.step_shape
        self._of[row.assignment] = step
        self._uses[step] += 1
        if step not in self._flops:
            # Of a nested seed the step at its widest, whatever others of the same shape are.
            self._flops[step] = step_flops(row.spec.model_copy(update={"nested_widths": ()}))

    def ends(self) -> tuple[StepShape, ...]:
        """The cheapest and the dearest step; one where they are the same, none without work."""
        if not self._flops:
            return ()
        ends = (min(self._flops, key=self._rank), max(self._flops, key=self._rank))
        return tuple(dict.fromkeys(ends))

    def _rank(self, step: StepShape) -> tuple[float, str]:
        # Of equally dear ones always the same, whatever came first.
        return self._flops[step], step.model_dump_json()
