"""Networks of our own, made of Linux network namespaces: who reaches whom is what a test says.

All of it is in namespaces and in the veth pairs between them: the machine's own network, its
addresses and its routes stay as they are. Needs root, iproute2 and a kernel that allows both; no
netfilter and no traffic control. What a NAT lets through goes through `tests/forwarder.py`.
"""

import contextlib
import functools
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

FORWARDER = Path(__file__).parent / "forwarder.py"
STOP_SECONDS = 10.0


class NamespacesRefused(Exception):
    """This machine does not let us make network namespaces; the message is what `ip` said."""


class Link(NamedTuple):
    """One end of a veth pair: the interface in this place, its address, and the other end's."""

    interface: str
    address: str
    across: str


class Place:
    """One namespace. It forwards nothing between its links unless `forward_packets` says so."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.name = f"hdee-{os.getpid()}-{label}"

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` here; its process is the command's own."""
        return ["ip", "netns", "exec", self.name, *arguments]

    def own(self, address: str) -> None:
        """Let `address` be one of this place, whatever link asks for it."""
        _ip("-n", self.name, "address", "add", f"{address}/32", "dev", "lo")

    def send_all_to(self, gateway: str) -> None:
        """Send whatever is not for a neighbour to `gateway`."""
        _ip("-n", self.name, "route", "add", "default", "via", gateway)

    def forward_packets(self, on: bool) -> None:
        """Whether packets pass through this place. Those that may not are dropped in silence."""
        _run(*self.command("sh", "-c", f"echo {int(on)} > /proc/sys/net/ipv4/ip_forward"))

    def received_bytes(self, interface: str) -> int:
        """What came in through `interface` since it was made, headers included."""
        shown = _ip("-n", self.name, "-json", "-statistics", "link", "show", "dev", interface)
        return int(json.loads(shown)[0]["stats64"]["rx"]["bytes"])


class Network:
    """Places and the links between them. Use as a context manager; leaving it removes all."""

    def __init__(self) -> None:
        self.folder = Path()
        self._places: list[Place] = []
        self._numbers = itertools.count(1)
        self._forwarders: list[subprocess.Popen[bytes]] = []
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> "Network":
        # Unix sockets lie here: their paths must be short.
        folder = tempfile.TemporaryDirectory(prefix="hdee-net-")
        self.folder = Path(self._cleanup.enter_context(folder))
        self._cleanup.callback(self._remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def place(self, label: str) -> Place:
        """A new place without any link. Raises NamespacesRefused."""
        place = Place(label)
        _ip("netns", "add", place.name)
        self._places.append(place)
        _ip("-n", place.name, "link", "set", "lo", "up")
        # A new namespace may inherit forwarding from the machine.
        place.forward_packets(False)
        return place

    def link(self, one: Place, other: Place) -> tuple[Link, Link]:
        """A cable between two places, with an address at either end. Raises NamespacesRefused."""
        number = next(self._numbers)
        first, second = f"10.77.{number}.1", f"10.77.{number}.2"
        links = (Link(other.label, first, second), Link(one.label, second, first))
        _ip(
            *("link", "add", links[0].interface, "netns", one.name, "type", "veth"),
            *("peer", "name", links[1].interface, "netns", other.name),
        )
        for place, end in zip((one, other), links, strict=True):
            _ip("-n", place.name, "address", "add", f"{end.address}/30", "dev", end.interface)
            _ip("-n", place.name, "link", "set", end.interface, "up")
        return links

    def forward(self, place: Place, ways: Mapping[str, str]) -> None:
        """Carry connections in user space: who connects to a key reaches its value.

        Both are HOST:PORT as seen from `place`, or the path of a Unix socket. An empty value drops
        who connects in silence, as firewalls do.
        """
        pairs = [f"{listen}={connect}" for listen, connect in ways.items()]
        forwarder = subprocess.Popen(
            place.command(sys.executable, str(FORWARDER), *pairs), stdout=subprocess.PIPE
        )
        self._forwarders.append(forwarder)
        assert forwarder.stdout is not None
        assert forwarder.stdout.readline() == b"ready\n", f"no forwarder in {place.label}"

    def _remove(self) -> None:
        for forwarder in self._forwarders:
            with forwarder:
                forwarder.kill()
        for place in self._places:
            with contextlib.suppress(NamespacesRefused):
                _ip("netns", "delete", place.name)


@functools.cache
def refusal() -> str | None:
    """Why no network of namespaces can be made on this machine, None if one can."""
    if shutil.which("ip") is None:
        return "network namespaces: there is no iproute2 here"
    if os.geteuid() != 0:
        return "network namespaces: only root may make them"
    try:
        with Network() as network:
            network.link(network.place("probe-a"), network.place("probe-b"))
    except NamespacesRefused as error:
        return f"network namespaces: {error}"
    return None


def _ip(*arguments: str) -> str:
    return _run("ip", *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=STOP_SECONDS)
    if done.returncode:
        raise NamespacesRefused(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
