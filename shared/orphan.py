"""A child process that notices when its parent is gone, on any system: its standard input ends."""

import os
import sys
import threading
from collections.abc import Callable


def watch_parent(on_death: Callable[[], None]) -> None:
    """Calls `on_death`, in a thread, once the pipe on standard input is closed.

    The parent must have given this process a pipe and must keep its end open as long as it lives.
    """

    def read_until_end() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        on_death()

    threading.Thread(target=read_until_end, name="watch-parent", daemon=True).start()
