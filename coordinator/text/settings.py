"""What a run's shards depend on, as prepared.json keeps it, and what of it has changed."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from coordinator.runfile import GENERAL, RunFile
from coordinator.text.prepared import PrepareError
from coordinator.text_sections import Text

_LATER: dict[str, object] = {
    "index": "pypi",
    "remove": [],
    "pack": None,
    "repeated_line_chars": None,
    "max_held_bytes": None,
}
"""Settings that came after the first release, and what they are when nothing is said."""


def text_settings(run: RunFile, split_key: bytes) -> dict[str, object]:
    """What the shards depend on; a key is named by its digest."""
    pretrained = run.seed.pretrained
    return {
        "tokenizer": run.tokenizer.model_dump(mode="json"),
        **({} if pretrained is None else {"seed.pretrained.path": pretrained.path}),
        GENERAL: _one_text(run.general),
        "domains": {name: _one_text(domain) for name, domain in run.domains.items()},
        "split_key_sha256": hashlib.sha256(split_key).hexdigest(),
    }


def _one_text(text: Text) -> dict[str, object]:
    """What one text's shards depend on.

    Settings that came after the first release are left out while they say nothing, so that runs
    that were prepared without them go on.
    """
    sources = [_without_unsaid(source.model_dump(mode="json")) for source in text.sources]
    others = text.model_dump(
        mode="json", exclude={"catalogue", "difficulty", "role", "round", "sources"}
    )
    return {"sources": sources, **_without_unsaid(others)}


def _without_unsaid(settings: dict[str, object]) -> dict[str, object]:
    return {
        key: value for key, value in settings.items() if key not in _LATER or value != _LATER[key]
    }


def refuse_changes(path: Path, before: dict[str, object], now: dict[str, object]) -> None:
    """Raises PrepareError, which names every setting that is not what it was."""
    if before == now:
        return
    old, new = dict(_flat(before)), dict(_flat(now))
    changes = [
        f"{key}: {json.dumps(old.get(key))} became {json.dumps(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    raise PrepareError(
        "the text settings are not those that the shards were made with; undo the change or start "
        f"another run ({path}):\n  " + "\n  ".join(changes)
    )


def _flat(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _flat(child, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from _flat(child, f"{key}[{index}]")
    else:
        yield key, value
