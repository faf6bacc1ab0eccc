"""What the volunteer sees: what is about to run, then how it goes."""

import sys
import time
from datetime import UTC, datetime
from typing import Protocol

from protocol.capability import Capability
from protocol.messages import Offer
from shared import sizing
from worker.runner import Event

PLAIN_SECONDS = 5.0
"""How often a progress line is printed where there is no terminal to redraw it on."""


class Screen(Protocol):
    """Where an agent says what it does."""

    def say(self, text: str) -> None:
        """A line that stays."""

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        """How training goes."""


class TextScreen:
    """Lines on standard output; on a terminal the progress line is redrawn in place."""

    def __init__(self, name: str) -> None:
        self._prefix = f"[{name}] " if name else ""
        self._terminal = sys.stdout.isatty()
        self._last = 0.0
        self._drawn = False

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._drawn:
            sys.stdout.write("\n")
            self._drawn = False
        for line in text.splitlines():
            sys.stdout.write(f"{self._prefix}{line}\n")
        sys.stdout.flush()

    def progress(self, event: Event, *, durable_step: int | None) -> None:
        """One line: step, speed, time left, loss, newest durable checkpoint."""
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else PLAIN_SECONDS):
            return
        self._last = now
        line = self._prefix + progress_line(event, durable_step=durable_step)
        if self._terminal:
            sys.stdout.write(f"\r\x1b[K{line}")
            self._drawn = True
        else:
            sys.stdout.write(line + "\n")
        sys.stdout.flush()


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


def describe_offer(offer: Offer, capability: Capability) -> str:
    """What a volunteer should know before it starts: work, bytes, time, memory, what leaves."""
    spec = offer.spec
    down = offer.shard.size
    if offer.resume is not None:
        down += sum(file.blob.size for file in offer.resume.files)
    if offer.parent is not None:
        down += offer.parent.manifest.blob("model.safetensors").size
    seconds = sizing.train_flops(spec) / max(capability.flops_per_second, 1.0)
    start = f", from step {offer.resume.step}" if offer.resume else ""
    return "\n".join(
        [
            f"{spec.kind} for {spec.domain}: FFN {spec.shape.ffn_width}, {spec.train.num_steps} "
            f"steps{start} [{offer.assignment}]",
            f"  why you: {offer.reason}",
            f"  down {megabytes(down)}, up {megabytes(sizing.expert_bytes(spec))} at the end and "
            f"{megabytes(sizing.checkpoint_bytes(spec))} a training checkpoint",
            f"  about {clock(seconds)} and at most "
            f"{megabytes(sizing.training_memory_bytes(spec, device=capability.device))} of memory; "
            "only weights and training state leave this machine",
        ]
    )


def describe_stay(seconds: float, *, now: float) -> str:
    """`staying until 2026-11-22 18:30 (8:00:00 from now)`, by this machine's time zone."""
    until = datetime.fromtimestamp(now + seconds, tz=UTC).astimezone()
    return (
        f"staying until {until:%Y-%m-%d %H:%M} ({clock(seconds)} from now); then the worker leaves "
        "in good order"
    )


def clock(seconds: float) -> str:
    """`1:05` or `2:03:04`."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def megabytes(num_bytes: float) -> str:
    """`12.3 MB`, or GB from a thousand of them."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
