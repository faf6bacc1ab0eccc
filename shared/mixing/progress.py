"""How far a long reading or writing of mixtures is: who does it tells, who asked decides how."""

from collections.abc import Callable
from dataclasses import replace

from shared.mixing.ingredients import Floats, Ingredient

Tell = Callable[[int, int], None]
"""Told how many of how many are done."""

Stage = Callable[[str], Tell]
"""Given what is begun, whom to tell how much of it is done."""


def untold(_done: int, _total: int) -> None:
    """A Tell that says nothing."""


def silent(_what: str) -> Tell:
    """A Stage that says nothing."""
    return untold


class Counter:
    """Adds up what is done in parts, of a `total` that is known beforehand."""

    def __init__(self, tell: Tell, total: int) -> None:
        self._tell, self._total, self._done = tell, total, 0
        tell(0, total)

    def add(self, count: int) -> None:
        """So many more are done."""
        self._done += count
        self._tell(self._done, self._total)


def counted(one: Ingredient, counter: Counter) -> Ingredient:
    """The ingredient, each of whose weights counts when it is read."""

    def read(name: str) -> Floats:
        tensor = one.read(name)
        counter.add(tensor.size)
        return tensor

    return replace(one, read=read)
