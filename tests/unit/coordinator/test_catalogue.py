"""The catalogue is whole, a run file can take from it by name, and its page says what it says."""

from functools import partial
from pathlib import Path

import pytest

from coordinator.runfile import RunFileError, load_run_file
from coordinator.text.catalogue import catalogue, page, problem_of
from coordinator.text.collecting import collect
from coordinator.text.packages import packages_folder
from coordinator.text.prepare import MIN_TEST_DOCUMENTS
from coordinator.text.sources import read_source
from shared.text.documents import split_documents

ROOT = Path(__file__).parents[3]
DRAMA = '[domains.drama]\nsources = [{path = "drama/*.txt", document = "split:(?m)^#"}]'


def test_there_are_nine_trained_and_twelve_held_out_domains_and_a_general_text():
    roles = [entry.role for entry in catalogue().texts.values()]
    assert [roles.count(role) for role in ("general", "trained", "held-out")] == [1, 9, 12]


def test_every_text_has_pinned_artifacts_of_known_size_and_enough_documents():
    for name, entry in catalogue().texts.items():
        assert entry.packages, name
        assert all(catalogue().size(source) for source in entry.packages)
        assert entry.text_bytes <= entry.max_bytes
        assert 0.08 * entry.documents >= 30, name


def test_every_artifact_is_used():
    used = {source.sha256 for entry in catalogue().texts.values() for source in entry.packages}
    assert used == set(catalogue().artifacts)


def test_a_domain_may_name_an_entry_and_still_set_its_limits(write_run):
    named = '[domains.drama]\ncatalogue = "drama"\nmax_bytes = 500_000\ndifficulty = "easy"'
    drama = load_run_file(write_run((DRAMA, named))).domains["drama"]
    entry = catalogue().texts["drama"]
    assert drama.sources == entry.sources
    assert (drama.repeated_line_chars, drama.max_chars) == (40, entry.max_chars)
    assert (drama.max_bytes, drama.difficulty) == (500_000, "easy")


def test_the_general_text_may_name_an_entry(write_run):
    old = '[general]\nsources = [{path = "general/*.txt", document = "paragraphs:300"}]'
    run = load_run_file(write_run((old, '[general]\ncatalogue = "general"')))
    assert run.general.sources == catalogue().texts["general"].sources


@pytest.mark.parametrize(
    ("name", "words"),
    [("geogrphy", "did you mean geography"), ("zzzz", "expected one of c_code, chemistry")],
)
def test_an_unknown_name_is_refused_with_those_near_it(write_run, name, words):
    with pytest.raises(RunFileError) as caught:
        load_run_file(write_run((DRAMA, f'[domains.drama]\ncatalogue = "{name}"')))
    (problem,) = caught.value.problems
    assert problem.startswith(f"domains.drama.catalogue = '{name}' is not in the catalogue; ")
    assert words in problem


def test_a_name_and_sources_contradict_each_other(write_run):
    with pytest.raises(RunFileError, match="'drama' and sources: expected one of them"):
        load_run_file(write_run((DRAMA, DRAMA + '\ncatalogue = "drama"')))


def test_a_loaded_run_file_loads_again_from_its_values(write_run):
    run = load_run_file(write_run((DRAMA, '[domains.drama]\ncatalogue = "drama"')))
    again = type(run).model_validate(run.model_dump(by_alias=True), context={"origin": run.origin})
    assert again == run


def test_known_names_have_no_problem():
    assert all(problem_of(name) is None for name in catalogue().texts)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(catalogue().texts))
def test_an_entry_gives_what_it_states_and_enough_for_every_test_shard(name, tmp_path):
    entry = catalogue().texts[name]
    folder = packages_folder()
    kept = collect(entry, files=partial(read_source, origin=tmp_path, cache=folder))
    assert (len(kept.documents), kept.num_bytes) == (entry.documents, entry.text_bytes)
    splits = split_documents(kept.documents, split_key=b"a key")
    assert len(splits["test"]) >= MIN_TEST_DOCUMENTS


def test_the_documentation_shows_the_catalogue():
    assert page() in (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
