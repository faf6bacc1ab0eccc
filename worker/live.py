"""The screen on a terminal: a thread draws it, so that a stopped terminal stops nothing else."""

import contextlib
import os
import sys
from collections.abc import Iterator

from rich.console import Console, RenderableType
from rich.live import Live

from shared.clock import now
from shared.training.runner import Event
from worker.panel import render
from worker.status import Board

DRAWS_A_SECOND = 1.0
TERMINAL = 1
"""The file number of standard output."""

SHOW_CURSOR = b"\x1b[?25h\n"


def is_possible() -> bool:
    """Whether standard output is a terminal on which a screen can be drawn again and again."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


class LiveScreen:
    """A screen that shows a board while `showing` lasts; of itself it prints nothing."""

    def say(self, text: str) -> None:
        """The board remembers it, and the next drawing shows it."""

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        """The board remembers it, and the next drawing shows it."""

    @contextlib.contextmanager
    def showing(self, board: Board, *, console: Console | None = None) -> Iterator[None]:
        """Draws the board as long as the block lasts; its last state stays on the terminal."""

        def drawn() -> RenderableType:
            return render(board.status, tuple(board.said), now())

        live = Live(
            get_renderable=drawn,
            console=console or Console(highlight=False),
            refresh_per_second=DRAWS_A_SECOND,
        )
        # A terminal that is gone (a closed window) ends the drawing and nothing else.
        with contextlib.suppress(OSError):
            live.start(refresh=True)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                live.stop()


def give_back_terminal() -> None:
    """Shows the cursor again, before the process ends without a word."""
    with contextlib.suppress(OSError):
        if os.isatty(TERMINAL):
            os.write(TERMINAL, SHOW_CURSOR)
