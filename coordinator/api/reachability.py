"""Can others open a libp2p connection to a worker? Dials back by plain TCP, within bounds.

A libp2p listener greets whoever connects, so that its first bytes prove it without a handshake.

Asking somebody's server to open connections is a way to reach what only that server can. So the
host of a multiaddress is never dialled and no name is looked up: what is dialled is the address
that the request came from, at the named ports. Whoever asks learns of its own machine, or of its
own router, no more than it could try itself, and sees none of the bytes that answer. Dials are few
for each request, each worker and all together, and end after some seconds. Behind a proxy that does
not tell who asks, everybody would seem to come from the proxy: so loopback is not dialled while the
run's own addresses say that it serves other machines. A proxy that passes on what its clients wrote
into X-Forwarded-For, instead of writing it, would undo all this.
"""

import asyncio
import errno
from collections.abc import Iterable, Sequence

from coordinator.api.errors import ApiError
from coordinator.api.limits import TooFast, meter
from protocol.errors import ErrorCode
from protocol.messages import Dialled, Outcome, ReachabilityAnswer
from shared.maddrs import IpAddress, NotTcp, plain_ip, tcp_address

GREETING = b"\x13/multistream/1.0.0\n"
"""What a libp2p listener says first: a length, and the protocol by which protocols are chosen."""

CONNECT_SECONDS = 5.0
GREETING_SECONDS = 5.0
MAX_PORTS = 4
MAX_DIALS = 16
REQUEST_SECONDS = 30.0
BURST_REQUESTS = 5
"""A worker asks when it joins, when something changed, and again every some minutes."""

_NO_ROUTE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
    | {errno.EACCES, errno.EPERM}
)


def dialable(host: str | None, *, own: Iterable[str]) -> tuple[IpAddress | None, str]:
    """The address to dial for a caller from `host`, or None and why there is none.

    `own` are the multiaddresses under which the run can be reached.
    """
    ip = plain_ip(host or "")
    if ip is None:
        return None, "the coordinator cannot tell which address you ask from"
    if ip.is_unspecified or ip.is_multicast or ip.is_link_local:
        return None, "no address at which others could reach you"
    if ip.is_loopback and not _is_local(own):
        return None, "you seem to ask from the coordinator's own machine, or through a silent proxy"
    return ip, ""


def ports_of(maddrs: Sequence[str], observed: IpAddress) -> dict[str, int | str]:
    """For each multiaddress the port to dial at `observed`, or why none is. At most MAX_PORTS."""
    found: dict[str, int | str] = {}
    ports: set[int] = set()
    for maddr in maddrs:
        try:
            address = tcp_address(maddr)
        except NotTcp as error:
            found[maddr] = str(error)
            continue
        if address.port == 0:
            found[maddr] = "has port 0, which stands for any"
        elif address.family not in (None, observed.version):
            found[maddr] = f"is no IPv{observed.version} address, as the one you ask from"
        elif address.port not in ports and len(ports) == MAX_PORTS:
            found[maddr] = f"is one more than the {MAX_PORTS} ports that are dialled at once"
        else:
            ports.add(address.port)
            found[maddr] = address.port
    return found


class Dialler:
    """The dials of one api process, and how often each worker may ask for some."""

    def __init__(self) -> None:
        self._dialling = 0
        self._allowed_at: dict[str, float] = {}

    def admit(self, worker: str, *, now: float) -> None:
        """Counts a request of `worker`. Raises ApiError RATE_LIMITED."""
        before = self._allowed_at.get(worker, 0.0)
        after = meter(before, now=now, pace_seconds=REQUEST_SECONDS, burst=BURST_REQUESTS)
        if isinstance(after, TooFast):
            seconds = after.retry_after_seconds
            words = f"worker {worker}: is dialled again in {seconds:.0f} s"
            raise ApiError(ErrorCode.RATE_LIMITED, words, retry_after_seconds=seconds)
        recent = {other: until for other, until in self._allowed_at.items() if until > now}
        self._allowed_at = {**recent, worker: after}

    async def dial_back(self, observed: IpAddress, maddrs: Sequence[str]) -> ReachabilityAnswer:
        """What became of each multiaddress. Raises ApiError BUSY while too many are dialled."""
        planned = ports_of(maddrs, observed)
        ports = sorted({port for port in planned.values() if isinstance(port, int)})
        if self._dialling + len(ports) > MAX_DIALS:
            seconds = CONNECT_SECONDS + GREETING_SECONDS
            words = "too many workers are being dialled"
            raise ApiError(ErrorCode.BUSY, words, retry_after_seconds=seconds)
        self._dialling += len(ports)
        try:
            dials = await asyncio.gather(*(_dial(str(observed), port) for port in ports))
        finally:
            self._dialling -= len(ports)
        outcomes = dict(zip(ports, dials, strict=True))
        return ReachabilityAnswer(
            observed=str(observed),
            dialled=tuple(
                _dialled(maddr, *outcomes[port])
                if isinstance(port, int)
                else _dialled(maddr, "not_dialled", port)
                for maddr, port in planned.items()
            ),
        )


def nothing_dialled(host: str | None, maddrs: Sequence[str], why: str) -> ReachabilityAnswer:
    """The answer to a caller from `host` whom we do not dial."""
    ip = plain_ip(host or "")
    dialled = tuple(_dialled(maddr, "not_dialled", why) for maddr in dict.fromkeys(maddrs))
    return ReachabilityAnswer(observed="" if ip is None else str(ip), dialled=dialled)


async def _dial(host: str, port: int) -> tuple[Outcome, str]:
    """What became of one dial, and the same in words that hold nothing of what was received."""
    where = f"port {port} of {host}"
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, limit=len(GREETING))
    except ConnectionRefusedError:
        return "refused", f"{where} refuses connections"
    except TimeoutError:
        return "timed_out", f"{where} did not answer in {CONNECT_SECONDS:.0f} s"
    except OSError as error:
        if error.errno in _NO_ROUTE:
            return "no_route", f"there is no way to {where}"
        return "not_dialled", "the coordinator could not open a connection"
    try:
        async with asyncio.timeout(GREETING_SECONDS):
            if await reader.readexactly(len(GREETING)) == GREETING:
                return "reachable", f"a libp2p peer answers at {where}"
        return "not_libp2p", f"what answers at {where} is no libp2p peer"
    except TimeoutError:
        return "not_libp2p", f"{where} opens, but says nothing in {GREETING_SECONDS:.0f} s"
    except (asyncio.IncompleteReadError, OSError):
        return "not_libp2p", f"{where} opens, but closes without a libp2p greeting"
    finally:
        writer.transport.abort()


def _dialled(maddr: str, outcome: Outcome, detail: str) -> Dialled:
    return Dialled(maddr=maddr, outcome=outcome, detail=detail)


def _is_local(own: Iterable[str]) -> bool:
    """Whether a run with these addresses serves its own machine, so that callers come from it."""
    hosts = []
    for maddr in own:
        try:
            hosts.append(tcp_address(maddr))
        except NotTcp:
            continue
    return not hosts or any(
        address.host == "localhost" or (address.ip is not None and address.ip.is_loopback)
        for address in hosts
    )
