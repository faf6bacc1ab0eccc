"""Can others open connections to this worker? What the coordinator found, judged in words.

Reachable is not needed to take part: a worker that nobody can dial pushes what it makes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from protocol.messages import Dialled, ReachabilityAnswer, ReachabilityRequest
from shared.maddrs import IpAddress, NotTcp, TcpAddress, plain_ip, tcp_address, tcp_maddr
from worker.client import CoordinatorClient
from worker.errors import CoordinatorUnreachable, Refused
from worker.settings import is_loopback

MAX_ASKED = 4
"""Ports that the coordinator dials for one request."""

MAX_ANNOUNCED = 4
"""Addresses that a record in the DHT has room for."""

MAX_SHOWN = 200

UNTIL_THEN = (
    "until then this worker pushes what it makes, which costs nothing but serving other workers"
)


@dataclass(frozen=True, kw_only=True)
class Reachability:
    """Whether others can dial this worker.

    `observed` is the IP address that the coordinator saw, empty if it did not say. `announce` are
    the multiaddresses, without /p2p/ID, to be named to others: none while it is unreachable; while
    nothing is known, those that may work. `words` say what was found, `fix` how to mend it, empty
    when there is nothing to mend.
    """

    state: Literal["reachable", "unreachable", "unknown"]
    observed: str
    announce: tuple[str, ...]
    words: str
    fix: str


async def ask(
    client: CoordinatorClient, listen_maddrs: Sequence[str], *, announce: Sequence[str] = ()
) -> Reachability:
    """Lets the coordinator try, and judges. Unknown if it does not answer; raises nothing else.

    `listen_maddrs` are where the running peer listens, with real ports; `announce` what its owner
    said that others should dial, instead.
    """
    asked = _worth_asking(announce or listen_maddrs)
    if not asked:
        words = "this worker has no TCP address that others could dial"
        fix = "start it with --listen /ip4/0.0.0.0/tcp/4001; " + UNTIL_THEN
        return _unknown(words, fix, announce=())
    may_work = _hopeful(listen_maddrs, announce, here=is_loopback(client.host))
    try:
        answer = await client.reachability(ReachabilityRequest(maddrs=asked))
    except (CoordinatorUnreachable, Refused) as error:
        words = f"the coordinator did not test it: {printable(str(error))}"
        return _unknown(words, "", announce=may_work)
    ip = plain_ip(answer.observed)
    if ip is not None and ip.is_loopback and not is_loopback(client.host):
        words = f"the coordinator takes this worker for {ip}: a proxy does not tell it who asks"
        fix = "tell its operator to let the proxy set X-Forwarded-For"
        return _unknown(words, fix, announce=may_work)
    return judge(answer, listen_maddrs, announce)


def judge(
    answer: ReachabilityAnswer, listen_maddrs: Sequence[str], announce: Sequence[str]
) -> Reachability:
    """What the answer to a request with `announce`, or else `listen_maddrs`, means. Pure."""
    observed = plain_ip(answer.observed)
    here = observed is not None and observed.is_loopback
    may_work = _hopeful(listen_maddrs, announce, here=here)
    if observed is None:
        why = next((dialled.detail for dialled in answer.dialled if dialled.detail), "")
        return _unknown(_not_tested(why), "", announce=may_work)
    elsewhere = _elsewhere(announce, observed)
    if elsewhere:
        words = (
            f"--announce names {elsewhere}, but the coordinator sees this machine at {observed} "
            "and tests no other address; it is announced as you say"
        )
        fix = f"if {elsewhere} is not this machine, leave --announce out or name {observed}"
        return _unknown(words, fix, announce=may_work, observed=observed)
    asked = {maddr: address.port for maddr, address in _addresses(announce or listen_maddrs)}
    found = [dialled for dialled in answer.dialled if dialled.maddr in asked]
    ports = sorted({asked[dialled.maddr] for dialled in found if dialled.outcome == "reachable"})
    if ports:
        return Reachability(
            state="reachable",
            observed=str(observed),
            announce=_announced(listen_maddrs, announce, observed=observed, ports=ports),
            words=f"others can dial this worker at {_at(observed, ports)}",
            fix="",
        )
    failed = [dialled for dialled in found if dialled.outcome != "not_dialled"]
    if not failed:
        return _nothing_tried(found, listen_maddrs, observed, may_work)
    port = asked[failed[0].maddr]
    return Reachability(
        state="unreachable",
        observed=str(observed),
        announce=(),
        words=_failure(failed[0], port, observed),
        fix=f"{_fix(port, observed, listen_maddrs, announce)}; {UNTIL_THEN}",
    )


def printable(text: str) -> str:
    """What a stranger wrote, as one line that a terminal may be shown."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(line.split())[:MAX_SHOWN]


def _failure(dialled: Dialled, port: int, observed: IpAddress) -> str:
    where = f"port {port} of {observed}"
    return {
        "refused": f"nobody can open a connection to {where}: it refuses connections",
        "timed_out": f"nobody can open a connection to {where}: nothing answers there",
        "no_route": f"the coordinator has no way to {where}",
        "not_libp2p": f"{where} opens, but it is not this worker that answers",
    }[dialled.outcome]


def _fix(
    port: int, observed: IpAddress, listen_maddrs: Sequence[str], announce: Sequence[str]
) -> str:
    """What the volunteer can do: it depends on where this machine stands."""
    local = [address for _, address in _addresses(listen_maddrs)]
    inside = local[0].port if local else port
    everywhere = "0.0.0.0" if observed.version == 4 else "::"
    listen = f"--listen {tcp_maddr(everywhere, inside)}"
    if local and all(address.ip is not None and address.ip.is_loopback for address in local):
        return f"it listens for this machine alone: start it with {listen}"
    if any(address.ip == observed for address in local):
        return f"let this machine's firewall admit TCP port {port}, and start it with {listen}"
    if announce:
        way = f"port {port} of your router to port {inside} of this machine"
        return f"forward TCP {way}, and start it with {listen}"
    return (
        f"forward TCP port {port} of your router to this machine, and start it with {listen} "
        f"(for another port of the router add --announce {_host_port(observed)}:PORT)"
    )


def _nothing_tried(
    found: Sequence[Dialled],
    listen_maddrs: Sequence[str],
    observed: IpAddress,
    may_work: tuple[str, ...],
) -> Reachability:
    """The coordinator sees us, but what we named leads it nowhere, such as the other IP version."""
    why = next((dialled.detail for dialled in found if dialled.detail), "")
    local = [address for _, address in _addresses(listen_maddrs)]
    fix = ""
    if local and all(address.family not in (None, observed.version) for address in local):
        everywhere = "0.0.0.0" if observed.version == 4 else "::"
        fix = (
            f"the coordinator sees this machine at {observed}: listen there, too, with "
            f"--listen {tcp_maddr(everywhere, local[0].port)}"
        )
    return _unknown(_not_tested(why), fix, announce=may_work, observed=observed)


def _announced(
    listen_maddrs: Sequence[str],
    announce: Sequence[str],
    *,
    observed: IpAddress,
    ports: Sequence[int],
) -> tuple[str, ...]:
    """What its owner named, as far as it works; else what the coordinator saw, and the LAN's."""
    named = _addresses(_hopeful((), announce, here=observed.is_loopback))
    working = tuple(maddr for maddr, address in named if address.port in ports)
    if working:
        return working
    seen = [tcp_maddr(str(observed), port) for port in ports]
    nearby = _hopeful(listen_maddrs, (), here=observed.is_loopback)
    return tuple(dict.fromkeys([*seen, *nearby]))[:MAX_ANNOUNCED]


def _hopeful(
    listen_maddrs: Sequence[str], announce: Sequence[str], *, here: bool
) -> tuple[str, ...]:
    """Addresses that may work for others, untested; loopback if the swarm is `here`."""
    found = [
        address.maddr
        for _, address in _addresses(announce or listen_maddrs)
        if address.ip is None
        or not (address.ip.is_unspecified or (address.ip.is_loopback and not here))
    ]
    return tuple(dict.fromkeys(found))[:MAX_ANNOUNCED]


def _worth_asking(maddrs: Sequence[str]) -> tuple[str, ...]:
    """One multiaddress for each port and IP version."""
    first: dict[tuple[int, int | None], str] = {}
    for maddr, address in _addresses(maddrs):
        first.setdefault((address.port, address.family), maddr)
    return tuple(first.values())[:MAX_ASKED]


def _addresses(maddrs: Iterable[str]) -> list[tuple[str, TcpAddress]]:
    """Those of TCP listeners with a real port."""
    found = []
    for maddr in maddrs:
        try:
            address = tcp_address(maddr)
        except NotTcp:
            continue
        if address.port:
            found.append((maddr, address))
    return found


def _elsewhere(announce: Sequence[str], observed: IpAddress) -> str:
    """IP addresses that are announced, if none of what is announced may be `observed`."""
    ips = [address.ip for _, address in _addresses(announce)]
    if any(ip is None or ip == observed for ip in ips):
        return ""
    return ", ".join(sorted({str(ip) for ip in ips}))


def _not_tested(why: str) -> str:
    reason = printable(why)
    return f"the coordinator did not test it{f': {reason}' if reason else ''}"


def _at(observed: IpAddress, ports: Sequence[int]) -> str:
    numbers = ", ".join(map(str, ports))
    return f"port{'s' if len(ports) > 1 else ''} {numbers} of {observed}"


def _host_port(observed: IpAddress) -> str:
    return f"[{observed}]" if observed.version == 6 else str(observed)


def _unknown(
    words: str, fix: str, *, announce: tuple[str, ...], observed: IpAddress | None = None
) -> Reachability:
    return Reachability(
        state="unknown",
        observed="" if observed is None else str(observed),
        announce=announce,
        words=words,
        fix=fix,
    )
