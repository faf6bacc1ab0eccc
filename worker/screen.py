"""What the volunteer reads: what is about to run, then how it goes, in lines of text."""

import sys
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Protocol

from protocol.blobs import BlobRef
from protocol.capability import Capability
from protocol.messages import Offer
from shared import sizing
from shared.training.runner import Event
from shared.words import size_words
from worker.cost import download_bytes, train_seconds

LINE_SECONDS = 5.0
"""How often a progress line is printed."""


class Screen(Protocol):
    """Where an agent says what it does."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        """How training goes."""


class TextScreen:
    """Lines on standard output, for pipes, files and the logs of services."""

    def __init__(self, name: str) -> None:
        self._prefix = f"[{name}] " if name else ""
        self._last = 0.0

    def say(self, text: str) -> None:
        """A line that stays."""
        for line in text.splitlines():
            sys.stdout.write(f"{self._prefix}{line}\n")
        sys.stdout.flush()

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        """One line: step, speed, time left, loss, newest durable checkpoint."""
        now = time.monotonic()
        if now - self._last >= LINE_SECONDS:
            self._last = now
            self.say(progress_line(event, durable_step=durable_step))


def progress_line(event: Event, *, durable_step: int | None) -> str:
    """`step 34/100  5120 tokens/s  0:13 left  loss 4.512  durable at step 30`."""
    loss = event.get("loss")
    return "  ".join(
        [
            f"step {event['step']}/{event['num_steps']}",
            f"{event['tokens_per_second']:.0f} tokens/s",
            f"{clock(event['eta_seconds'])} left",
            f"loss {loss:.3f}" if loss is not None else "loss -",
            f"durable at step {durable_step}"
            if durable_step is not None
            else "nothing durable yet",
        ]
    )


def describe_offer(
    offer: Offer, capability: Capability, *, own_shards: Collection[str] = ()
) -> str:
    """What a volunteer should know before it starts: work, bytes, time, memory, what leaves.

    `own_shards` are the digests of own text: it is here, and no training checkpoint on it leaves.
    """
    spec, is_own = offer.spec, offer.shard.digest in own_shards
    down = download_bytes(offer, own_shards=own_shards)
    seconds = train_seconds(offer, capability)
    start = f", from step {offer.resume.step}" if offer.resume else ""
    saved = megabytes(sizing.checkpoint_bytes(spec))
    return "\n".join(
        [
            f"{spec.kind} for {spec.domain}: {size_words(spec.shape, spec.lora)}, "
            f"{spec.train.num_steps} steps{start} [{offer.assignment}]",
            f"  why you: {offer.reason}",
            f"  down {megabytes(down)}, up {megabytes(sizing.expert_bytes(spec))} at the end"
            + ("" if is_own else f" and {saved} a training checkpoint"),
            f"  about {clock(seconds)} and at most "
            f"{megabytes(sizing.training_memory_bytes(spec, device=capability.device))} of memory; "
            f"only {'weights' if is_own else 'weights and training state'} leave this machine",
        ]
    )


def describe_transfer(ref: BlobRef, num_bytes: int, rate: float) -> str:
    """`fetching 3f2a…: 12.6 of 540.0 MB, 2.1 MB/s, 4:11 left`; `rate` in bytes a second."""
    left = clock((ref.size - num_bytes) / rate) if rate > 0 else "-"
    return (
        f"fetching {ref.digest[:12]}: {megabytes(num_bytes)} of {megabytes(ref.size)}, "
        f"{megabytes(rate)}/s, {left} left"
    )


def describe_stay(seconds: float, *, now: float) -> str:
    """`staying until 2026-11-22 18:30 (8:00:00 from now)`, by this machine's time zone."""
    until = wall_clock(now + seconds)
    return (
        f"staying until {until:%Y-%m-%d %H:%M} ({clock(seconds)} from now); then the worker leaves "
        "in good order"
    )


def describe_until(until: float | None) -> str:
    """` until 2026-11-22 18:30:05` by this machine's time zone; None: ` until it is resumed`."""
    if until is None:
        return " until `hdee-worker resume`"
    return f" until {wall_clock(until):%Y-%m-%d %H:%M:%S}"


def wall_clock(at: float) -> datetime:
    """A Unix time by this machine's time zone."""
    return datetime.fromtimestamp(at, tz=UTC).astimezone()


def clock(seconds: float) -> str:
    """`1:05` or `2:03:04`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def megabytes(num_bytes: float) -> str:
    """`12.3 MB`, or GB from a thousand of them."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
