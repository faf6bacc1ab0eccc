"""A swarm whose workers are on networks of their own and reach nobody but the coordinator."""

import re
import subprocess
import sys

import httpx
import pytest
from namespaces import Link, Network, Place
from swarm import Swarm, running_in

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(1500)]

STEPS = 150
COORDINATOR = "10.77.0.1"
"""The address that the run file tells workers, whatever link they come by."""

PORTS = {"api": 8700, "network": 8701, "libp2p": 8702}
PEER_PORT = 4001


class ScatteredSwarm(Swarm):
    """A coordinator in a place of its own and workers in others, behind NATs or not."""

    listen = f'api_host = "0.0.0.0"\npublic_host = "{COORDINATOR}"'
    schemes = '["MHo-IHo"]'
    worker_listen = f"/ip4/0.0.0.0/tcp/{PEER_PORT}"

    def __init__(self, folder, network: Network) -> None:
        self.network = network
        self.api_socket = str(network.folder / "api.sock")
        super().__init__(folder, steps=STEPS)
        self.ports = PORTS
        self.url = f"http://{COORDINATOR}:{PORTS['api']}"
        self.places: dict[str, Place] = {}
        self.hub = self.place("coordinator")
        self.hub.own(COORDINATOR)
        network.forward(self.hub, {self.api_socket: f"127.0.0.1:{PORTS['api']}"})

    def transport(self):
        limits = httpx.Limits(max_keepalive_connections=0)
        return httpx.HTTPTransport(uds=self.api_socket, limits=limits)

    def place(self, name: str) -> Place:
        """Where the process called `name` runs."""
        self.places[name] = place = self.network.place(name)
        self.prefixes[name] = place.command()
        return place

    def connect(self, name: str) -> Link:
        """Give the worker called `name` a link to the coordinator and to nobody else."""
        place = self.place(name)
        _, end = self.network.link(self.hub, place)
        place.send_all_to(end.across)
        return end

    def connect_behind_nat(self, name: str, *, blocked: tuple[str, ...] = ()) -> Link:
        """Put the worker called `name` behind a NAT with a firewall; returns the NAT's outside.

        Everything goes by the coordinator's address, so that the worker sees nothing of the NAT.
        """
        home = self.place(name)
        router = self.network.place(f"{name}-nat")
        _, inside = self.network.link(router, home)
        home.send_all_to(inside.across)
        _, outside = self.network.link(self.hub, router)
        router.own(COORDINATOR)
        ways = {
            f"{COORDINATOR}:{port}": "" if role in blocked else f"{outside.across}:{port}"
            for role, port in PORTS.items()
        }
        self.network.forward(router, ways)
        return outside

    def join(self, name, *flags):
        super().join(name, "--insecure", *flags)

    def hear(self, name: str, words: str) -> None:
        """Wait until the worker called `name` tells its owner these words."""
        what = f"{name} says: {words}"
        self.wait_for(what, lambda: words in " ".join(self.said(name).split()), seconds=240)

    def makers(self) -> set[str]:
        """Whose work was accepted; every spec has some."""
        views, names = self.assignments(), self.names()
        won = [view for view in views if view["state"] == "accepted"]
        assert {view["spec"] for view in won} == {view["spec"] for view in views}
        return {names[view["worker"]] for view in won}

    def routes(self, name: str, event: str) -> set[str]:
        """By which routes blobs came to a worker (fetched) or left it (uploaded)."""
        return set(re.findall(rf" {event} .* route=\W?(\w+)", self.logged(name)))

    def routes_from(self, name: str) -> set[str]:
        """By which routes blobs came from the worker to the coordinator."""
        peer = {name: peer for peer, name in self.names().items()}[name]
        lines = self.role_logged("network").splitlines()
        lines = [line for line in lines if peer in line and "route=" in line]
        return {line.partition("route=")[2].split()[0] for line in lines}


@pytest.fixture
def swarm(network, tmp_path):
    with ScatteredSwarm(tmp_path, network) as swarm:
        yield swarm
    assert running_in(tmp_path) == []


def can_connect(place: Place, host: str, port: int) -> bool:
    """Whether anybody at `host` answers to who is in `place`."""
    words = f"import socket; socket.create_connection(({host!r}, {port}), 2)"
    command = place.command(sys.executable, "-c", words)
    return subprocess.run(command, capture_output=True).returncode == 0


def test_two_workers_that_reach_only_the_coordinator_finish_a_run(swarm):
    ends = {name: swarm.connect(name) for name in ("east", "west")}
    swarm.serve("--insecure")
    for name in ends:
        swarm.join(name)
    for name, end in ends.items():
        swarm.hear(name, f"others can dial this worker at port {PEER_PORT} of {end.address}")
    assert not can_connect(swarm.places["east"], ends["west"].address, PEER_PORT)
    assert not can_connect(swarm.places["west"], ends["east"].address, PEER_PORT)

    swarm.wait_for("the run is finished", swarm.finished, seconds=900)
    assert swarm.makers() == {"east", "west"}
    for name in ends:
        # Where libp2p was measured to be slow, the coordinator's HTTP takes over.
        assert {"retained"} <= swarm.routes(name, "fetched") <= {"retained", "http"}
        assert swarm.routes_from(name) == {"direct"}


def test_a_worker_without_libp2p_and_one_that_nobody_can_dial_finish_a_run(swarm):
    swarm.connect_behind_nat("fenced", blocked=("libp2p",))
    outside = swarm.connect_behind_nat("hidden")
    swarm.serve("--insecure")
    assert not can_connect(swarm.places["fenced"], COORDINATOR, PORTS["libp2p"])
    swarm.join("fenced")
    swarm.join("hidden")
    nobody = "nobody can open a connection to port"
    swarm.hear("hidden", f"{nobody} {PEER_PORT} of {outside.address}: it refuses connections")

    swarm.wait_for("the run is finished", swarm.finished, seconds=900)
    assert swarm.makers() == {"fenced", "hidden"}
    assert swarm.routes("fenced", "fetched") == swarm.routes("fenced", "uploaded") == {"http"}
    assert swarm.routes_from("fenced") == {"http"}
    # At first nobody knows that hidden cannot be dialled, and its peer is built twice.
    assert "to be a client that nobody dials" in swarm.logged("hidden")
    assert "retained" in swarm.routes("hidden", "fetched")
    assert "push" in swarm.routes("hidden", "uploaded")
    assert "push" in swarm.routes_from("hidden")


def test_a_network_leaves_nothing_behind(network, tmp_path):
    with Network() as other:
        one, two = other.place("one"), other.place("two")
        end, far_end = other.link(one, two)
        other.forward(two, {f"{far_end.address}:1": str(tmp_path / "nowhere")})
        assert can_connect(one, far_end.address, 1)
        assert not can_connect(one, far_end.address, 2)
        assert not can_connect(two, end.address, 1)
        assert one.name in namespaces()
    assert one.name not in namespaces()
    assert running_in(other.folder) == []
    assert not other.folder.exists()


def namespaces() -> str:
    return subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
