"""The same run with other random numbers: a folder of its own, the same shards and keys.

A replicate is a complete run. Its run file is the first one's with `rng_seed` raised in both
recipes; its text is not prepared again, so that runs differ in nothing but their random numbers.
"""

import json
import os
import shutil
import tomllib
from pathlib import Path
from typing import Any

from coordinator.folders import RunFolders
from coordinator.runfile import RunFile, load_run_file
from coordinator.text.prepared import PreparedFile, PrepareError, read_prepared
from coordinator.text.settings import text_settings
from protocol.blobs import ShardManifest
from shared.blobs import BlobStore
from shared.files import write_atomic

RNG_STEP = 1000
"""Between the random numbers of replicates: recipes of one run may differ by less."""

_PUBLIC = ("train", "dev")


def make_replicate(run: RunFile, run_file: Path, number: int) -> Path:
    """The run file of replicate `number` (from 2), whose folder is made if it is not there.

    It lies in `replicates/NUMBER` below the run's folder. Expects the text of `run` to be prepared.
    Raises PrepareError where it is not, or where the folder holds another run than this one.
    """
    origin = RunFolders(run.folder)
    folders = RunFolders(origin.root / "replicates" / str(number))
    path = folders.root / "run.toml"
    text = replicate_text(run, run_file, number)
    if path.exists():
        if path.read_text(encoding="utf-8") != text:
            raise PrepareError(
                f"{path}: is not what {run_file} gives now; delete the folder, or go on with it "
                f"alone: hdee-coordinator train-local {path}"
            )
        return path
    prepared = read_prepared(origin.prepared)
    if prepared is None:
        raise PrepareError(f"{origin.prepared} is missing: prepare the text first")
    folders.create()
    for key in (origin.coordinator_key, origin.split_key, origin.admin_token):
        _link(key, folders.keys / key.name)
    _link_blobs(origin, folders, prepared)
    for file in (origin.tokenizer, origin.overlap):
        if file.exists():
            _link(file, folders.state / file.name)
    _write_last(path, text, folders, prepared)
    return path


def replicate_text(run: RunFile, run_file: Path, number: int) -> str:
    """The contents of the replicate's run file."""
    data = tomllib.loads(run_file.read_text(encoding="utf-8"))
    more = RNG_STEP * (number - 1)
    seeds: dict[tuple[str, ...], int] = {("recipe", "rng_seed"): run.recipe.rng_seed + more}
    if run.seed.recipe is not None:
        seeds["seed", "recipe", "rng_seed"] = run.seed.recipe.rng_seed + more
    for keys, value in seeds.items():
        table = data
        for key in keys[:-1]:
            table = table.setdefault(key, {})
        table[keys[-1]] = value
    data["run"]["folder"] = "."
    # A ledger of its own: what [ledger] names is the first run's.
    data.pop("ledger", None)
    named = ", ".join(f"{'.'.join(keys)} = {value}" for keys, value in seeds.items())
    head = f"# Replicate {number} of {run_file.absolute()}: {named}\n"
    return head + toml_of(_with_absolute_paths(data, run.origin))


def toml_of(table: dict[str, Any], *, name: str = "") -> str:
    """TOML of nested tables; tables in lists are written inline."""
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = [f"[{name}]"] if name and (plain or not table) else []
    lines += [f"{_key(key)} = {_value(value)}" for key, value in plain.items()]
    text = "\n".join(lines) + "\n" if lines else ""
    for key, value in table.items():
        if isinstance(value, dict):
            text += toml_of(value, name=f"{name}.{_key(key)}" if name else _key(key))
    return text


def _write_last(path: Path, text: str, folders: RunFolders, prepared: PreparedFile) -> None:
    """prepared.json, as the new run file would have it, and then the run file, which says all."""
    draft = path.with_name("draft.toml")
    draft.write_text(text, encoding="utf-8")
    key = bytes.fromhex(folders.split_key.read_text(encoding="ascii").strip())
    settings = text_settings(load_run_file(draft), key)
    contents = PreparedFile(text=settings, prepared=prepared.prepared)
    write_atomic(folders.prepared, contents.model_dump_json(indent=1).encode())
    draft.unlink()
    write_atomic(path, text.encode())


def _link_blobs(origin: RunFolders, folders: RunFolders, prepared: PreparedFile) -> None:
    def copy(source: Path, target: Path, digest: str) -> None:
        BlobStore(target).add_file(BlobStore(source).path(digest))

    copy(origin.blobs, folders.blobs, prepared.prepared.tokenizer.digest)
    for shard in prepared.prepared.shards:
        if _is_public(shard):
            copy(origin.blobs, folders.blobs, shard.blob.digest)
        else:
            copy(origin.sealed, folders.sealed, shard.blob.digest)


def _is_public(shard: ShardManifest) -> bool:
    return shard.split in _PUBLIC


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy(source, target)


def _with_absolute_paths(value: Any, origin: Path) -> Any:
    """With the files that a run file names from its own folder named from anywhere."""
    if isinstance(value, list):
        return [_with_absolute_paths(one, origin) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: str(origin / one)
        if isinstance(one, str) and _is_file(key, origin / one)
        else _with_absolute_paths(one, origin)
        for key, one in value.items()
    }


def _is_file(key: str, path: Path) -> bool:
    """A source's `path` may be a pattern; what else names a model may also be no file."""
    return key == "path" or (key in ("model", "directory") and path.exists())


def _key(key: str) -> str:
    bare = key.replace("-", "").replace("_", "")
    return key if bare.isascii() and bare.isalnum() else _string(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {_value(one)}" for key, one in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, str):
        return _string(value)
    return repr(value)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
