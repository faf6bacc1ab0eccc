"""init leaves a folder that serve can start from, and never touches keys that exist."""

import sysconfig
from pathlib import Path

import pytest

from coordinator.folders import RunFolders
from coordinator.init import InitError, init_folder
from coordinator.runfile import load_run_file
from shared.identity import Identity


def test_a_new_folder_holds_a_run_file_that_loads_and_private_keys(tmp_path):
    folder = tmp_path / "My Run!"
    written = init_folder(folder)
    folders = RunFolders(folder)
    assert written == [
        folders.coordinator_key,
        folders.split_key,
        folders.admin_token,
        folder / "run.toml",
    ]
    run = load_run_file(folder / "run.toml")
    assert run.run.name == "my-run-"
    assert run.folder == folder
    assert list(run.domains) == ["recipes", "python", "shakespeare"]
    assert run.plan.schemes == ("MHo-IHo", "MHe-IHo")
    assert Path(sysconfig.get_path("stdlib")).is_dir()
    for key in written[:3]:
        assert key.stat().st_mode & 0o777 == 0o600
    assert folders.keys.stat().st_mode & 0o777 == 0o700
    assert Identity.load(folders.coordinator_key).peer_id.startswith("12D3KooW")
    assert len(bytes.fromhex(folders.split_key.read_text())) == 32
    assert len(folders.admin_token.read_text().strip()) >= 40


def test_an_existing_run_is_not_overwritten(tmp_path):
    init_folder(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InitError, match=r"run\.toml.*already there"):
        init_folder(tmp_path)
    assert {path: path.read_bytes() for path in before} == before


def test_a_lone_key_is_not_overwritten_either(tmp_path):
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "split.key").write_text("mine")
    with pytest.raises(InitError, match=r"split\.key: already there"):
        init_folder(tmp_path)
    assert not (tmp_path / "run.toml").exists()


def test_force_renews_the_run_file_and_keeps_the_keys(tmp_path):
    init_folder(tmp_path)
    keys = {path: path.read_bytes() for path in (tmp_path / "keys").iterdir()}
    (tmp_path / "run.toml").write_text("changed")
    (tmp_path / "keys" / "admin.token").unlink()
    written = init_folder(tmp_path, force=True)
    assert [path.name for path in written] == ["admin.token", "run.toml"]
    load_run_file(tmp_path / "run.toml")
    for path in (tmp_path / "keys").iterdir():
        assert (path.read_bytes() == keys[path]) == (path.name != "admin.token")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InitError, match="file/run: cannot be written"):
        init_folder(tmp_path / "file" / "run")
