"""What is compared, and who of the processes takes part in it."""

from dataclasses import dataclass

FETCHER, FIRST, SECOND, WEB, AGENT = "fetcher", "first", "second", "web", "agent"


@dataclass(frozen=True)
class Method:
    """One way for the file to get from the disk of the `senders` to the fetcher's.

    `asked` is the process that gets the order, with the others that it is to turn to.
    """

    name: str
    title: str
    order: str
    senders: tuple[str, ...]
    asked: str = FETCHER

    @property
    def others(self) -> tuple[str, ...]:
        """Those that the process which gets the order is told of."""
        return self.senders if self.asked == FETCHER else (FETCHER,)


METHODS = (
    Method("raw", "(a) raw libp2p stream into a file", "raw", (FIRST,)),
    Method("fetch", "(b) fetch, one provider", "fetch", (FIRST,)),
    Method("fetch-two", "(c) fetch, two providers", "fetch", (FIRST, SECOND)),
    Method("push", "(d) push", "push", (FIRST,), asked=FIRST),
    Method("http", "(e) uvicorn, httpx into a file", "http", (WEB,)),
    Method("https", "(h) as (e), over TLS", "https", (WEB,)),
    Method("fetch-http", "(f) fetch over HTTP", "fetch_http", (WEB,)),
    Method("tcp", "(g) raw TCP into a file", "tcp", (FIRST,)),
)

RAW = METHODS[0]
"""What all are compared with. It is what comes first."""

BY_NAME = {method.name: method for method in METHODS}
