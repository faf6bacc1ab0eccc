"""The run file for experts that become a mixture."""

from coordinator.init import init_folder
from coordinator.runfile import load_run_file
from coordinator.text.catalogue import catalogue

GENERAL = ("general", "dictionary", "poetry", "music", "databases")


def test_the_seed_reads_what_the_catalogue_has_and_nothing_of_any_domain(tmp_path):
    init_folder(tmp_path / "run", preset="mixing")
    run = load_run_file(tmp_path / "run" / "run.toml")
    texts = catalogue().texts
    known = [source for name in GENERAL for source in texts[name].sources]
    read = [
        # Of the dictionary a part: its nouns and verbs would be half of all general text.
        source.model_copy(update={"members": source.members.replace("data.a*", "data.*")})
        for source in run.general.sources
    ]
    assert read == known
    assert not set(GENERAL) & run.domains.keys()


def test_there_are_six_domains_to_mix_and_others_to_be_careful_with(tmp_path):
    init_folder(tmp_path / "run", preset="mixing")
    run = load_run_file(tmp_path / "run" / "run.toml")
    assert len(run.trained) == 6
    assert len(run.domains) == 10
    assert (run.plan.experts, run.recipe.trains) == ("keep-all", "ffn_embeddings")
    assert run.seed.kind == "nested"
    assert len(set(run.widths.nested())) == 3
