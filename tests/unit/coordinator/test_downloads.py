"""Watching a client of a package index at work."""

import shutil
import threading
from pathlib import Path

from coordinator.text.downloads import _bytes_below


def test_bytes_are_counted_while_the_client_makes_and_deletes_folders(tmp_path: Path) -> None:
    for place in ("arrived", "scratch"):
        (tmp_path / place).mkdir()
    (tmp_path / "arrived" / "artifact").write_bytes(b"12345")
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            for number in range(20):
                (tmp_path / "scratch" / "build" / str(number)).mkdir(parents=True)
            shutil.rmtree(tmp_path / "scratch" / "build")

    client = threading.Thread(target=churn)
    client.start()
    try:
        counted = {_bytes_below(tmp_path) for _ in range(300)}
    finally:
        ended.set()
        client.join()
    assert counted == {5}
