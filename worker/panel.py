"""The volunteer's screen: the status, what was said last, and what can be done. Pure.

Long lines are wrapped. Where the terminal is too low for all, what matters least is left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.text import Text

from shared.words import flops_words, plain
from worker.screen import clock, wall_clock
from worker.status import WorkerStatus

BLOCKS = "▁▂▃▄▅▆▇█"
MAX_SAID = 5
"""What was said last is shown, so many of it."""

LABEL_COLUMNS = 10
FRAME_COLUMNS = 4
FRAME_ROWS = 2

SPARKS = 20
BAR_COLUMNS = 12

STATES = {
    "joining": "joining",
    "waiting": "waiting for work",
    "fetching": "fetching what training starts from",
    "training": "training",
    "paused": "paused",
    "handing_in": "handing in",
    "leaving": "leaving",
    "away": "the coordinator does not answer",
}

HINTS = (
    """\
Ctrl-C: save, give the work back and leave; twice: at once
in another window: hdee-worker pause 1h, resume, finish, why""",
    "Ctrl-C: save and leave; twice: at once",
    "",
)

LEAST_FIRST = ("server", "credit", "transfer", "next", "lease", "saved", "loss", "speed")
"""Rows in the order in which a terminal that is too low loses them. The others say what goes on."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is shown: one of HINTS, how much of what was said, which rows, in how many lines."""

    hint: str
    num_said: int
    left_out: tuple[str, ...] = ()
    row_lines: int | None = None

    def of_rows(self, labelled: Sequence[tuple[str, Sequence[Text]]]) -> list[Text]:
        """Of each row's lines those that are shown."""
        kept = [lines for label, lines in labelled if label not in self.left_out]
        return [line for lines in kept for line in lines[: self.row_lines]]

    def of_said(self, told: Sequence[Sequence[Text]]) -> list[Text]:
        """Of what was said, each in its lines, what was said last."""
        return [line for lines in told[max(0, len(told) - self.num_said) :] for line in lines]


def amounts() -> Iterator[Amount]:
    """From all that there is to the least, each a little less than the one before."""
    for num_said in range(MAX_SAID, 1, -1):
        yield Amount(hint=HINTS[0], num_said=num_said)
    for num_said in (2, 1):
        yield Amount(hint=HINTS[1], num_said=num_said)
    for count in range(1, len(LEAST_FIRST) + 1):
        yield Amount(hint=HINTS[1], num_said=1, left_out=LEAST_FIRST[:count])
    for num_said, hint in ((0, HINTS[1]), (0, HINTS[2])):
        yield Amount(hint=hint, num_said=num_said, left_out=LEAST_FIRST)
    for row_lines in (2, 1):
        yield Amount(hint=HINTS[2], num_said=0, left_out=LEAST_FIRST, row_lines=row_lines)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """The screen at a Unix time; `said` are lines with their times, oldest first."""

    status: WorkerStatus
    said: Sequence[tuple[float, str]]
    now: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """As much as fits into the terminal as it is now."""
        width, height = options.max_width, options.size.height
        labelled = [
            (label, self._row(label, words, console, width))
            for label, words in rows(self.status, self.now)
        ]
        told = [
            list(Text(_said_line(at, text)).wrap(console, width))
            for at, text in self.said[-MAX_SAID:]
        ]
        inside: list[Text] = []
        below: list[Text] = []
        for much in amounts():
            inside = much.of_rows(labelled)
            hint = Text(much.hint, style="dim").wrap(console, width) if much.hint else ()
            below = [*much.of_said(told), *hint]
            if len(inside) + len(below) + FRAME_ROWS < height:
                break
        head = [one for one in (self.status.name, self.status.run, self.status.device_name) if one]
        title = Text(plain(" · ".join(head) or "hdee-worker"))
        yield Panel(Group(*inside), title=title, title_align="left")
        yield from below

    def _row(self, label: str, words: str, console: Console, width: int) -> list[Text]:
        """A label, and beside it the words, in as many lines as they take."""
        shown = f"{_bar(self.status)} {words}" if label == "step" else words
        text = Text(plain(shown), style="bold" if label == "state" else "")
        room = max(1, width - FRAME_COLUMNS - LABEL_COLUMNS)
        lines = text.wrap(console, room, overflow="fold")
        labels = [label, *[""] * (len(lines) - 1)]
        return [
            Text.assemble((f"{one:<{LABEL_COLUMNS}}", "dim"), line)
            for one, line in zip(labels, lines, strict=True)
        ]


def render(status: WorkerStatus, said: Sequence[tuple[float, str]], now: float) -> RenderableType:
    """The screen at a Unix time; `said` are lines with their times, oldest first."""
    return Drawing(status=status, said=said, now=now)


def rows(status: WorkerStatus, now: float) -> list[tuple[str, str]]:
    """Label and words of each line of the panel; what is not known has none."""
    found = _rows_of_devices(status, now) if status.devices else _rows_of_one(status, now)
    if status.transfer:
        found.append(("transfer", status.transfer))
    if not status.devices:
        found += [("lease", _lease(status, now))] if status.lease_until is not None else []
        found += [("next", _asks(status, now))] if status.state in ("waiting", "away") else []
    if status.round_trip_seconds is not None:
        found.append(("server", _round_trip(status)))
    found.append(("credit", credit_words(status.accepted, status.credit)))
    return found


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """The newest `width` values as blocks, the lowest as the lowest; no line for equal values."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    if high <= low:
        return BLOCKS[0] * len(shown)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / (high - low) * top)] for value in shown)


def _rows_of_one(status: WorkerStatus, now: float) -> list[tuple[str, str]]:
    found = [("state", _state(status, now))]
    if status.reason:
        found.append(("why", status.reason))
    return found if status.assignment is None else found + _work_rows(status, now)


def _rows_of_devices(status: WorkerStatus, now: float) -> list[tuple[str, str]]:
    """A line for each of several devices, and what is true of all of them."""
    rows = [(one.device, _device_words(one, now)) for one in status.devices]
    return [*rows, ("state", "it leaves once this is handed in")] if status.finishing else rows


def _device_words(one: WorkerStatus, now: float) -> str:
    state = _state(one, now)
    if one.assignment is None or one.state == "paused":
        state = f"{state}: {one.reason}" if one.reason else state
    if one.assignment is None:
        return state
    left = "" if one.eta_seconds is None else f", {clock(one.eta_seconds)} left"
    loss = "" if one.loss is None else f", loss {one.loss:.3f} {sparkline(one.losses)}"
    return (
        f"{state}; {one.work} [{one.assignment}]; step {one.step}/{one.num_steps}, "
        f"{one.tokens_per_second:.0f} tokens/s{left}{loss}; {saved(one, now)}"
    )


def _work_rows(status: WorkerStatus, now: float) -> list[tuple[str, str]]:
    left = "" if status.eta_seconds is None else f", {clock(status.eta_seconds)} left"
    loss = "-" if status.loss is None else f"{status.loss:.3f} {sparkline(status.losses)}"
    return [
        ("work", f"{status.work} [{status.assignment}]"),
        ("step", f"{status.step}/{status.num_steps}, {_share(status):.0%}"),
        ("speed", f"{status.tokens_per_second:.0f} tokens/s{left}"),
        ("loss", loss),
        ("saved", saved(status, now)),
    ]


def _share(status: WorkerStatus) -> float:
    return status.step / max(1, status.num_steps)


def _bar(status: WorkerStatus) -> str:
    done = int(_share(status) * BAR_COLUMNS)
    return "█" * done + "░" * (BAR_COLUMNS - done)


def saved(status: WorkerStatus, now: float) -> str:
    """`here at step 40 (0:05 ago), at the coordinator at step 30`."""
    here = _checkpoint("here", status.local_step, status.local_at, now)
    there = _checkpoint("at the coordinator", status.durable_step, status.durable_at, now)
    return f"{here}, {there}"


def _checkpoint(where: str, step: int | None, at: float | None, now: float) -> str:
    if step is None:
        return f"nothing {where} yet"
    age = "" if at is None else f" ({clock(now - at)} ago)"
    return f"{where} at step {step}{age}"


def _state(status: WorkerStatus, now: float) -> str:
    words = STATES[status.state]
    if status.state == "paused" and status.pause_until is not None:
        words += f" for {clock(status.pause_until - now)} more"
    if status.finishing and status.state != "leaving":
        words += ", then it leaves"
    return f"{words} (for {clock(now - status.since)})" if status.since else words


def _lease(status: WorkerStatus, now: float) -> str:
    left = (status.lease_until or 0.0) - now
    if left < 0:
        return f"ran out {clock(-left)} ago, as far as is known here"
    return f"{clock(left)} left, renewed by heartbeats"


def _asks(status: WorkerStatus, now: float) -> str:
    if status.asks_at is None or status.asks_at <= now:
        return "asking now"
    return f"asks again in {clock(status.asks_at - now)}"


def _round_trip(status: WorkerStatus) -> str:
    words = f"answered in {1000 * (status.round_trip_seconds or 0.0):.0f} ms"
    if status.server_seconds is not None:
        words += f", {1000 * status.server_seconds:.0f} ms of it its own"
    return words


def credit_words(accepted: int, credit: float) -> str:
    """`1.2e15 FLOPs for 3 accepted pieces of work`."""
    if not accepted:
        return "none yet"
    pieces = "piece" if accepted == 1 else "pieces"
    earned = flops_words(credit) if credit else "none"
    return f"{earned} for {accepted} accepted {pieces} of work"


def _said_line(at: float, text: str) -> str:
    return f"{wall_clock(at):%H:%M:%S} " + plain(text.replace("\n", " "))
