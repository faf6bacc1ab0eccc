"""The dense baseline, and the trials that find its learning rate. Pure."""

import math
from collections.abc import Iterable, Mapping

from coordinator.planning.measured import Measured
from coordinator.planning.recipes import Recipes
from coordinator.runfile import RunFile
from coordinator.text.prepared import Prepared
from protocol.ids import Digest
from protocol.specs import ExpertSpec
from shared.sizing import train_flops


class Baseline:
    """The dense baseline, and the trials that find its learning rate."""

    def __init__(
        self,
        run: RunFile,
        prepared: Prepared,
        seeds: Mapping[str, ExpertSpec],
        measured: Measured,
    ) -> None:
        self.trials: tuple[ExpertSpec, ...] = ()
        self.lost: tuple[ExpertSpec, ...] = ()
        self.spec: ExpertSpec | None = None
        self.problem = ""
        self.wants: list[tuple[Digest, str]] = []
        self._run = run
        self._recipes = Recipes(run, prepared) if run.dense else None
        self._parent = seeds["M"].digest
        self._measured = measured

    def draw(self, experts: Iterable[ExpertSpec]) -> None:
        """Name the trials, then the baseline, with the budget of all `experts` of one scheme."""
        dense = self._run.dense
        if dense is None or self._recipes is None:
            return
        budget = math.fsum(map(train_flops, experts))
        rate = dense.learning_rates[0]
        if len(dense.learning_rates) > 1:
            by_rate = {
                one: self._recipes.dense(
                    budget=budget, rate=one, parent=self._parent, trial_steps=dense.trial_steps
                )
                for one in dense.learning_rates
            }
            self.trials = tuple(by_rate.values())
            self.lost = tuple(
                spec for spec in self.trials if spec.digest in self._measured.diverged
            )
            if len(self.lost) == len(self.trials):
                self.problem = (
                    f"the dense baseline diverged at each of dense.learning_rates "
                    f"{list(dense.learning_rates)} within {dense.trial_steps} steps; expected a "
                    "rate among them at which its loss stays finite"
                )
                return
            losses = {one: self._loss(spec) for one, spec in by_rate.items()}
            if self.wants:
                return
            rate = min(losses, key=lambda one: (losses[one], one))
        self.spec = self._recipes.dense(budget=budget, rate=rate, parent=self._parent)

    def _loss(self, spec: ExpertSpec) -> float:
        """The mean of the trained domains' dev losses; what is missing is wanted.

        Infinite for a trial that diverged: its rate has lost.
        """
        if spec in self.lost:
            return math.inf
        losses = []
        for domain in self._run.trained:
            loss = self._measured.dev_loss.get((spec.digest, domain))
            if loss is None:
                self.wants.append((spec.digest, domain))
            else:
                losses.append(loss)
        return math.fsum(losses) / max(1, len(losses))
