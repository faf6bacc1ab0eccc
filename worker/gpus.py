"""Which GPU of several: `cuda:1` on the command line, and one visible device for all that computes.

Numbers are those of `nvidia-smi`. The protocol knows kinds of devices only: which of them it is
concerns this machine alone, so trainers see the chosen one as the only one.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import get_args

from protocol.capability import Device

VISIBLE = "CUDA_VISIBLE_DEVICES"
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Without it CUDA numbers the fastest first, and `nvidia-smi` by the slot."""

ASK_SECONDS = 5.0
MIB = 1 << 20


class NoSuchDevice(ValueError):
    """What `--device` names is no device; the message says what was expected."""


def parse_device(text: str) -> tuple[Device, int | None]:
    """The kind in `cpu`, `cuda`, `cuda:1` or `mps`, and the number. Raises NoSuchDevice."""
    for kind in get_args(Device):
        if text == kind:
            return kind, None
    match = re.fullmatch(r"cuda:([0-9]{1,3})", text)
    if match is None:
        raise NoSuchDevice(
            f"device {text!r}: expected one of {', '.join(get_args(Device))}, or a GPU by its "
            "number in nvidia-smi, such as cuda:1"
        )
    return "cuda", int(match.group(1))


def visible(number: int, environ: Mapping[str, str]) -> str:
    """What makes GPU `number` of those that are visible now the only one: a value for VISIBLE.

    Raises NoSuchDevice where fewer are visible.
    """
    shown = environ.get(VISIBLE)
    if shown is None:
        return str(number)
    names = [name.strip() for name in shown.split(",") if name.strip()]
    if number >= len(names):
        raise NoSuchDevice(f"device 'cuda:{number}': {VISIBLE} shows {len(names)} here ({shown})")
    return names[number]


def every(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Every GPU that is visible, as `cuda:0` and on; none where `nvidia-smi` does not tell."""
    listed = _ask(environ, "--query-gpu=index", "--format=csv,noheader")
    count = 0 if listed is None else len(listed.split())
    if VISIBLE in environ:
        count = min(count, len([name for name in environ[VISIBLE].split(",") if name.strip()]))
    return tuple(f"cuda:{number}" for number in range(count))


def free_bytes(environ: Mapping[str, str]) -> int | None:
    """Free memory of the first visible GPU by `nvidia-smi`; None where that does not tell."""
    first = environ.get(VISIBLE, "0").split(",")[0].strip() or "0"
    asked = ("--query-gpu=memory.free", "--format=csv,noheader,nounits")
    answer = _ask(environ, f"--id={first}", *asked) or ""
    return int(answer) * MIB if re.fullmatch(r"[0-9]{1,9}", answer) else None


def _ask(environ: Mapping[str, str], *arguments: str) -> str | None:
    """What `nvidia-smi` says; None where there is none, or it fails."""
    path = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ASK_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
