"""Multiaddresses of TCP listeners, taken apart and put together. Pure; looks no name up."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_PORT = 65_535
_FAMILIES: dict[str, Literal[4, 6] | None] = {
    "ip4": 4,
    "ip6": 6,
    "dns": None,
    "dns4": 4,
    "dns6": 6,
}
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*\.?")


class NotTcp(ValueError):
    """A multiaddress that plain TCP does not lead to; the message says why."""


@dataclass(frozen=True)
class TcpAddress:
    """`host` as it is written, an IP address or a name; `family` None: a name of either family."""

    host: str
    port: int
    family: Literal[4, 6] | None

    @property
    def ip(self) -> IpAddress | None:
        """The host, if it is an IP address."""
        return plain_ip(self.host)

    @property
    def maddr(self) -> str:
        """The multiaddress of this alone, without /p2p/ID."""
        return tcp_maddr(self.host, self.port)


def tcp_address(maddr: str) -> TcpAddress:
    """`/ip4/192.0.2.1/tcp/4001`, also with /p2p/ID behind it. Port 0 is let through.

    Raises NotTcp for other transports, relays, and what is no multiaddress.
    """
    parts = maddr.split("/")
    kind, host, transport, port, *rest = (*parts[1:], *("",) * 4)[: max(4, len(parts) - 1)]
    if parts[0] or kind not in _FAMILIES:
        raise NotTcp("begins with neither /ip4, /ip6, /dns, /dns4 nor /dns6")
    if transport != "tcp":
        raise NotTcp(f"is reached over {transport or 'nothing'}, not over tcp")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > MAX_PORT:
        raise NotTcp(f"has no port from 0 to {MAX_PORT}")
    if rest and (rest[0] != "p2p" or len(rest) != 2):
        raise NotTcp(f"goes on with /{rest[0]} where plain tcp ends")
    family = _FAMILIES[kind]
    if kind.startswith("ip"):
        ip = _ip(host)
        if ip is None or ip.version != family:
            raise NotTcp(f"names no IPv{family} address")
    elif not is_name(host):
        raise NotTcp("names no host")
    return TcpAddress(host, int(port), family)


def tcp_maddr(host: str, port: int) -> str:
    """The multiaddress of a host, IP address or name, and its TCP port."""
    ip = _ip(host)
    return f"/{f'ip{ip.version}' if ip else 'dns'}/{host}/tcp/{port}"


def plain_ip(text: str) -> IpAddress | None:
    """The IP address that `text` is, an IPv4-mapped one as IPv4; None if it is none."""
    ip = _ip(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip


def is_name(text: str) -> bool:
    """Whether `text` can be a DNS name; what looks like an IPv4 address is none."""
    last = text.rstrip(".").rpartition(".")[2]
    return _NAME.fullmatch(text) is not None and not last.isdigit()


def _ip(text: str) -> IpAddress | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
