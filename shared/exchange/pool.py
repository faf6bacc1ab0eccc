"""Which pieces of a blob are still to be fetched, and by whom they are being fetched. No I/O."""

from collections.abc import Iterable

MAX_RANGE_PIECES = 16


class Pool:
    """The pieces of one download, handed out in gapless ranges.

    What a broken stream brought of a piece is kept as its *head*, so that on a slow line that often
    breaks every byte still counts: the next source goes on behind it.
    """

    def __init__(self, missing: Iterable[int]) -> None:
        self._waiting = sorted(missing)
        self._taken: set[int] = set()
        self._heads: dict[int, bytearray] = {}

    @property
    def is_done(self) -> bool:
        """Whether every piece is here."""
        return not self._waiting and not self._taken

    def take(self, num_lanes: int, *, most: int = MAX_RANGE_PIECES) -> range:
        """The pieces to fetch next, `most` of them, empty if there are none to take.

        Each of `num_lanes` gets its share of what waits, half at first and less towards the end, so
        that all end at about the same time. A piece with a head goes first.
        """
        if not self._waiting:
            return range(0)
        share = -(-len(self._waiting) // (2 * num_lanes))
        place = next((at for at, one in enumerate(self._waiting) if one in self._heads), 0)
        end = place + 1
        while (
            end < len(self._waiting)
            and end - place < min(share, most, MAX_RANGE_PIECES)
            and self._waiting[end] == self._waiting[end - 1] + 1
            and self._waiting[end] not in self._heads
        ):
            end += 1
        taken = self._waiting[place:end]
        del self._waiting[place:end]
        self._taken.update(taken)
        return range(taken[0], taken[-1] + 1)

    def done(self, index: int) -> None:
        """Piece `index` is here, whoever brought it."""
        self._taken.discard(index)
        if index in self._waiting:
            self._waiting.remove(index)

    def is_missing(self, index: int) -> bool:
        """Whether the piece is still to be fetched, or being fetched."""
        return index in self._taken or index in self._waiting

    def give_back(self, indices: Iterable[int]) -> None:
        """Those of `indices` that were taken and are not here wait again."""
        back = self._taken.intersection(indices)
        self._taken -= back
        self._waiting = sorted([*self._waiting, *back])

    def keep_head(self, index: int, head: bytearray) -> None:
        """The first bytes of a piece that is not whole. They are not verified."""
        if head and self.is_missing(index):
            self._heads[index] = head

    def pop_head(self, index: int) -> bytearray:
        """What is there of the piece; empty if nothing is."""
        return self._heads.pop(index, bytearray())

    def heads(self) -> Iterable[tuple[int, bytearray]]:
        """What is there of pieces that are not whole."""
        return self._heads.items()
