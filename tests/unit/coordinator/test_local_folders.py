"""One user of a run's folder at a time, and run files of replicates."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.folders import RunFolders
from coordinator.init import init_folder
from coordinator.local.occupancy import FolderInUse, occupied
from coordinator.local.replicates import replicate_text, toml_of
from coordinator.runfile import load_run_file

SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"])),
)
KEYS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS, max_size=3),
    lambda inner: st.dictionaries(KEYS, st.one_of(SCALARS, inner, st.lists(inner, max_size=2))),
    max_leaves=8,
)


@given(TABLES)
def test_a_written_table_reads_back_as_it_was(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_of(table)) == table


def test_a_replicate_differs_in_its_seeds_folder_and_ledger_alone(tmp_path: Path) -> None:
    init_folder(tmp_path)
    run_file = tmp_path / "run.toml"
    with run_file.open("a") as file:
        file.write('[domains.mine]\nsources = [{path = "mine/*.txt", document = "file"}]\n')
        file.write('[ledger]\ndatabase = "sqlite:////elsewhere"\n')
    run = load_run_file(run_file)
    (tmp_path / "third").mkdir()
    other = tmp_path / "third" / "run.toml"
    other.write_text(replicate_text(run, run_file, 3))
    again = load_run_file(other)
    assert again.seed.recipe.rng_seed == run.seed.recipe.rng_seed + 2000
    assert again.recipe.rng_seed == run.recipe.rng_seed + 2000
    assert again.folder == tmp_path / "third"
    assert again.ledger.database is None
    assert again.domains["mine"].sources[0].path == str(tmp_path / "mine/*.txt")
    assert again.general == run.general
    for section in ("run", "timing", "tokenizer", "shape", "widths", "plan"):
        assert getattr(again, section) == getattr(run, section)


def test_train_local_stands_beside_nobody_and_roles_beside_each_other(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path)
    serve = {"by": "serve", "shared": True, "now": 0.0}
    local = {"by": "train-local", "shared": False, "now": 0.0}
    with (
        occupied(folders, **serve),
        occupied(folders, **serve),
        pytest.raises(FolderInUse, match=r"serve \(process \d+, started 1970-01-01"),
        occupied(folders, **local),
    ):
        pass
    with occupied(folders, **local):
        for one in (local, serve):
            with pytest.raises(FolderInUse, match="train-local"), occupied(folders, **one):
                pass
    with occupied(folders, **serve):
        pass
