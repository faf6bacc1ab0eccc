"""The run file is checked whole, and says of each problem where it is and what was expected."""

from pathlib import Path

import pytest

from coordinator.runfile import RunFileError, load_run_file


def problems(path: Path) -> list[str]:
    with pytest.raises(RunFileError) as caught:
        load_run_file(path)
    assert str(path) in str(caught.value)
    return caught.value.problems


def test_a_run_file_loads_with_defaults_and_an_absolute_folder(write_run, tmp_path):
    run = load_run_file(write_run(('name = "small"', 'name = "small"\nfolder = "there"')))
    assert run.run.name == "small"
    assert run.folder == tmp_path / "there"
    assert run.origin == tmp_path
    assert (run.enrolment, run.trust) == ("open", "all")
    assert run.listen.api_host == "127.0.0.1"
    assert len({run.listen.api_port, run.listen.network_port, run.listen.libp2p_port}) == 3
    assert list(run.domains) == ["cooking", "drama", "python"]
    assert run.width_labels() == ("S", "M", "L")


def test_trust_may_list_workers_by_peer_id(write_run):
    worker = "12D3KooW" + "A" * 44
    trust = f'[trust]\nenrolment = "invite"\nworkers = ["{worker}"]\n[tokenizer]'
    run = load_run_file(write_run(("[tokenizer]", trust)))
    assert (run.enrolment, run.trust) == ("invite", (worker,))


def test_every_problem_is_listed_with_its_key_and_value(write_run):
    found = problems(
        write_run(
            ('name = "small"', 'name = "Not A Slug"'),
            ("num_layers = 1", 'num_layers = "one"'),
            ("[tokenizer]", "[listen]\nlibp2p_port = 99999\n[tokenizer]"),
            ("hidden_size = 16\n", ""),
        )
    )
    text = "\n".join(found)
    assert len(found) == 4
    assert "run.name = 'Not A Slug': expected" in text
    assert "shape.num_layers = 'one': expected a valid integer" in text
    assert "listen.libp2p_port = 99999: expected less than or equal to 65535" in text
    assert "shape.hidden_size: missing" in text


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("schedule_steps = 12", "schedule_steps = 12\nmicro_bach = 2",
         "recipe.micro_bach: unknown key; did you mean micro_batch?"),
        ("[tokenizer]", "[listen]\nnum_heads = 3\n[tokenizer]",
         "listen.num_heads: unknown key; num_heads belongs in [shape]"),
        ("[widths]", "zzz = 1\n[widths]",
         "shape.zzz: unknown key; "
         "expected one of context_length, hidden_size, norm_eps, num_heads, num_kv_heads, "
         "num_layers, rope_theta, tied_embeddings"),
        ('"cooking/*.txt", document', '"cooking/*.txt", exclud = [], document',
         "domains.cooking.sources[0].exclud: unknown key; did you mean exclude?"),
        ('name = "small"', 'name = "small"\n[listn]', "listn: unknown key; did you mean listen?"),
    ],
)  # fmt: skip
def test_an_unknown_key_names_the_nearest_known_one(write_run, old, new, expected):
    assert problems(write_run((old, new))) == [expected]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_heads = 2", "num_heads = 3", ["hidden_size 16", "num_heads 3"]),
        ("num_heads = 2", "num_heads = 2\nnum_kv_heads = 3", ["num_kv_heads 3", "num_heads 2"]),
        ("M = 24", "M = 16", ["S 16", "M 16"]),
        ("context_length = 32", "context_length = 31",
         ["seed.recipe: sequence_length 32", "recipe: sequence_length 32", "31"]),
        ("final_learning_rate = 5e-4", "final_learning_rate = 5e-3",
         ["final_learning_rate 0.005", "peak_learning_rate 0.001"]),
        ("warmup_steps = 2", "warmup_steps = 9", ["warmup_steps 9", "num_steps 8"]),
        ("schedule_steps = 12", "schedule_steps = 7",
         ["plan.homogeneous_steps: 8", "recipe.schedule_steps 7"]),
        ("schedule_steps = 12", "", ["recipe.schedule_steps: missing"]),
        ("[widths]", "[own_data]\nsteps = 8\n[widths]",
         ["own_data.harm_percent: missing, expected a number above 0 up to 1000"]),
        ("[tokenizer]", "[trust]\nenrolment = 'some'\n[tokenizer]", ["'open' or 'invite'"]),
        ("schedule_steps = 12", 'schedule_steps = 12\nschedule = "annealed"',
         ["schedule_steps: 12", "annealed"]),
        ("schedule_steps = 12", 'schedule = "annealed"\nwarmup = 1',
         ["recipe.warmup: unknown key; did you mean warmup_steps?"]),
        ("vocab_size = 320", 'vocab_size = 320\nmodel = "x.model"', ["320", "x.model"]),
        ("vocab_size = 320", "", ["tokenizer", "exactly one"]),
        ('["MHo-IHo", "MHe-IHo"]', '["MHo-IHo", "MHo-IHe"]', ["plan", "steps None", "MHo-IHe"]),
        ('["MHo-IHo", "MHe-IHo"]', '["MHo-IHo", "MHo-IHo"]', ["plan.schemes", "once"]),
        ("[domains.drama]", "[domains.general]", ["domains.general", "another"]),
        ("[domains.drama]", "[domains.own]", ["domains.own", "group of domains", "another"]),
        ("[domains.drama]", '[domains."cooking.rehearsed"]', ["rehearses for cooking", "another"]),
        ("[domains.drama]", "[domains.drama]\nmin_chars = 9\nmax_chars = 8",
         ["domains.drama", "min_chars 9", "max_chars 8"]),
        ("[domains.drama]\nsources = [{path = \"drama/*.txt\", document = \"split:(?m)^#\"}]",
         "[domains.drama]\nsources = []", ["domains.drama.sources", "at least one"]),
        ('"paragraphs:300"', '"pages"', ["general.sources[0].document = 'pages'", "json:/POINTER"]),
        ('"paragraphs:300"', '"split:("', ["general.sources[0].document", "regular expression"]),
        ('path = "general/*.txt"', 'package = "a", version = "1", sha256 = "xyz", members = "*"',
         ["general.sources[0].sha256 = 'xyz'"]),
        ('path = "general/*.txt"',
         'package = "a b", version = "1 --x", sha256 = "xyz", members = "*"',
         ["sources[0].package = 'a b'", "sources[0].version = '1 --x'"]),
    ],
)  # fmt: skip
def test_contradictions_are_refused_with_both_values(write_run, old, new, words):
    text = "\n".join(problems(write_run((old, new))))
    for word in words:
        assert word in text


def test_weights_of_seeds_that_were_trained_apart_are_not_averaged(write_run):
    wanted = ("[seed]", "[evaluation]\nweight_averages = true\n[seed]")
    found = problems(write_run(wanted, ('"nested"', '"per-size"')))
    assert len(found) == 1
    assert "evaluation.weight_averages" in found[0]
    assert "per-size" in found[0]
    load_run_file(write_run(wanted))


def test_several_contradictions_are_listed_together(write_run):
    found = problems(write_run(("num_heads = 2", "num_heads = 3"), ("M = 24", "M = 16")))
    assert len(found) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"[run\n", "not TOML"), (b"\xff\xfe", "not UTF-8"), (b"#" * 1_000_001, "1000001 bytes")],
)
def test_a_file_that_is_no_toml_is_refused(tmp_path, content, words):
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    assert words in problems(path)[0]


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be read" in problems(tmp_path / "nowhere.toml")[0]
