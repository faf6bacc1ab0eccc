"""Quantities in words, for people. Pure."""

from protocol.specs import Lora, ModelShape


def duration(seconds: float) -> str:
    """Seconds for people: `50 s`, `12.5 min`, `3.2 h`."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def amount(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def flops_words(flops: float) -> str:
    """`1.2e15 FLOPs`."""
    digits, exponent = f"{flops:.1e}".split("e")
    return f"{digits}e{int(exponent)} FLOPs"


def size_words(shape: ModelShape, lora: Lora | None) -> str:
    """What makes a model big where others of its run differ: `FFN 640`, or with LoRA `rank 8`."""
    return f"FFN {shape.ffn_width}" if lora is None else f"rank {lora.rank}"


def plain(text: str) -> str:
    """Text without control characters, except for new lines: nothing in it commands a terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)
