"""One log line an event: time, level, what happened, and its facts as key=value."""

import logging
import sys
from pathlib import Path


def configure(*, path: Path | None = None, verbose: bool = False) -> None:
    """Sends this process's log to `path` (appended), or to standard error."""
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    for former in root.handlers[:]:
        root.removeHandler(former)
        former.close()
    root.addHandler(handler)
    root.setLevel(logging.DEBUG if verbose else logging.INFO)
    for noisy in ("httpx", "httpcore", "hivemind", "asyncio", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def facts(**values: object) -> str:
    """`key=value` pairs for the end of a log message; digests are cut to twelve characters."""
    return " ".join(f"{key}={_short(value)}" for key, value in values.items())


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    is_digest = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if is_digest else text
