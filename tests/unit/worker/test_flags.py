"""worker.toml holds flags by their names; the command line wins; help is in groups."""

import pytest

from worker.manners.hours import parse_hours

URL = "http://127.0.0.1:1"


def test_flags_may_stand_in_the_folders_file_and_the_command_line_wins(run, joined, tmp_path):
    (tmp_path / "worker.toml").write_text(
        'only-when-idle = "5m"\nhours = ["22:00-07:00"]\nthreads = 1\nnice = 19\n'
        'on-battery = true\nname = "from the file"\n"for" = "8h"\nmax-other-cpu = "50%"\n'
        'listen = "/ip4/0.0.0.0/tcp/4001"\n'
    )
    code, _, err = run("join", URL, "--folder", tmp_path, "--name", "anna", "--nice", "5")
    assert (code, err) == (0, "")
    (settings,) = joined
    assert settings.rules.idle_seconds == 300.0
    assert settings.rules.hours == (parse_hours("22:00-07:00"),)
    assert settings.rules.on_battery is True
    assert settings.rules.max_other_cpu == 0.5
    assert (settings.num_threads, settings.niceness, settings.name) == (1, 5, "anna")
    assert settings.stay_seconds == 28_800.0
    assert settings.listen == ("/ip4/0.0.0.0/tcp/4001",)


def test_without_a_file_the_defaults_hold(run, joined, tmp_path):
    code, _, _ = run("join", URL, "--folder", tmp_path)
    assert code == 0
    (settings,) = joined
    assert (settings.niceness, settings.free_after_seconds) == (10, 300.0)
    assert settings.rules.on_battery is False
    assert settings.rules.idle_seconds is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("only-when-idel = '5m'\n", "key 'only-when-idel': expected one of activity-file, "),
        ("yes = true\n", "key 'yes': expected one of "),
        ("on-battery = 'no'\n", "on-battery = 'no': expected true or false"),
        ("hours = [1]\n", "hours = [1]: expected text"),
        ("threads = 1.5\n", "threads = 1.5: expected text in quotes, or a whole number"),
        ("threads = '150%'\n", "--threads '150%': expected a share such as 50%"),
        ("only-when-idle = '5'\n", "--only-when-idle '5': expected a time"),
        ("hours = ['22-7']\n", "--hours '22-7': expected such as 22:00-07:00"),
        ("nice = 'many'\n", "nice = 'many': expected a whole number"),
        ("this is no TOML\n", "no TOML: "),
        ("\udcff", "no TOML: "),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_file_and_nothing_starts(
    run, joined, tmp_path, text, words
):
    path = tmp_path / "worker.toml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    code, out, err = run("join", URL, "--folder", tmp_path)
    assert (code, out, joined) == (2, "", [])
    assert err.startswith(f"hdee-worker: {path}: ")
    assert words in err


def test_a_wrong_flag_of_the_command_line_is_not_the_files_fault(run, joined, tmp_path):
    (tmp_path / "worker.toml").write_text('threads = "50%"\n')
    code, _, err = run("join", URL, "--folder", tmp_path, "--threads", "two")
    assert code == 2
    assert err.startswith("hdee-worker: --threads 'two': ")


def test_help_groups_what_it_may_use_and_when_it_may_train(run):
    code, out, _ = run("join", "--help")
    assert code == 0
    use, when = out.index("What it may use:"), out.index("When it may train:")
    assert use < out.index("--gpu-memory") < when < out.index("--only-when-idle")
    assert "worker.toml" in out
