"""Transfers between real peers over a link that is dead for a minute."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from namespaces import Network, Place
from swarm import POLL, running_in

from protocol.digests import PIECE_BYTES
from shared.blobs import BlobStore

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(900)]

ENDS = Path(__file__).parent / "transfer_ends.py"
BLOB_BYTES = 9 * PIECE_BYTES + 12_345
BYTES_PER_SECOND = 4_000_000
PARTITION_SECONDS = 60.0
OVERHEAD = 0.02
"""What headers, ciphers and acknowledgements may add: 0.6 % without any partition."""

NOISE_BYTES = 10_000
"""What a link carries by itself in a minute: ARP and neighbour discovery."""


class End:
    """One end of the transfer: a process in a place, and what it has said."""

    def __init__(self, place: Place, *arguments: str) -> None:
        self.said: list[dict[str, str]] = []
        self.process = subprocess.Popen(
            place.command(sys.executable, str(ENDS), *arguments), stdout=subprocess.PIPE, text=True
        )
        self._listener = threading.Thread(target=self._listen)

    def __enter__(self) -> "End":
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(90)
        self._listener.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def events(self, event: str) -> list[dict[str, str]]:
        """What it said of `event`; fails if it ended badly."""
        assert not self.process.poll(), self.said
        return [line for line in self.said if line["event"] == event]


def wait_for(condition: Callable[[], Any], *, seconds: float) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        POLL.wait(0.1)
    return value


def test_a_minute_of_partition_costs_at_most_a_piece_either_way(network: Network, tmp_path):
    stores = {name: BlobStore(tmp_path / name) for name in ("coordinator", "worker")}
    down, up = (store.add_bytes(os.urandom(BLOB_BYTES)) for store in stores.values())
    plan = {"down": down.model_dump(), "up": up.model_dump(), "bytes_per_second": BYTES_PER_SECOND}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    near, between, far = (network.place(label) for label in ("near", "between", "far"))
    _, near_link = network.link(between, near)
    _, far_link = network.link(between, far)
    near.send_all_to(near_link.across)
    far.send_all_to(far_link.across)
    between.forward_packets(True)

    def received() -> list[int]:
        """Bytes that came to the worker, and to the coordinator."""
        ends = (near, near_link), (far, far_link)
        return [place.received_bytes(link.interface) for place, link in ends]

    with ExitStack() as stack:
        serving = stack.enter_context(End(far, "serve", str(tmp_path), far_link.address))
        maddr = wait_for(lambda: serving.events("serving"), seconds=90)[0]["maddr"]
        carrying = stack.enter_context(End(near, "carry", str(tmp_path), near_link.address, maddr))
        wait_for(lambda: min(received()) > BLOB_BYTES / 2, seconds=180)
        between.forward_packets(False)
        before = received()
        assert carrying.events("done") == []
        POLL.wait(PARTITION_SECONDS)
        assert sum(received()) - sum(before) < NOISE_BYTES
        between.forward_packets(True)

        wait_for(lambda: len(carrying.events("done")) == 2, seconds=240)
        assert {line["what"] for line in carrying.events("failed")} == {"down", "up"}
        assert carrying.process.wait(30) == 0
        for num_bytes in received():
            assert num_bytes <= (1 + OVERHEAD) * BLOB_BYTES + PIECE_BYTES
    assert stores["worker"].verify(down.digest)
    assert stores["coordinator"].verify(up.digest)
    assert running_in(tmp_path) == []
