"""The experts of a real run become one model by real commands, and load without this package."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import BIN, RUN_FILE, Local, write_run
from safetensors.numpy import load_file, save_file

from coordinator.main import main
from coordinator.mixing.outcome import MixingResults
from coordinator.scoring.outcome import Results

pytestmark = pytest.mark.timeout(900)

PLAIN = """
import json, sys
for name in ("protocol", "shared", "coordinator", "worker"):
    sys.modules[name] = None
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.utils.logging.disable_progress_bar()
folder, prompt, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
inputs = tokenizer(prompt, return_tensors="pt")
made = model.generate(**inputs, max_new_tokens=count, do_sample=False)
text = tokenizer.decode(made[0], skip_special_tokens=True)
print(json.dumps({"kind": type(model).__name__, "text": text}))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Local:
    """A finished run of two invented languages, whose experts train FFNs and embeddings."""
    root = tmp_path_factory.mktemp("mixing") / "run"
    write_run(root)
    text = RUN_FILE[: RUN_FILE.index("[plan]")].replace(
        "schedule_steps = 400", "schedule_steps = 100"
    )
    text += 'trains = "ffn_embeddings"\n[plan]\nschemes = ["MHe-IHo"]\nhomogeneous_steps = 60\n'
    (root / "run.toml").write_text(text + "[dense]\nlearning_rates = [1e-2]\n", "utf-8")
    made = Local(root)
    try:
        made.finish("--trainers", "1")
    finally:
        made.end()
    return made


@pytest.fixture(scope="module")
def mixture(run: Local) -> Path:
    """The run's mixture, as the command makes it in a process of its own."""
    made = subprocess.run(
        [str(BIN / "hdee-coordinator"), "mix", "make", str(run.run_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert made.returncode == 0, made.stderr
    assert "trust_remote_code=True" in made.stdout
    return run.root / "mixture"


@dataclass(frozen=True)
class Made:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str) -> Made:
    """A command in this process: a process of its own spends its time on loading torch."""
    out, err = io.StringIO(), io.StringIO()
    before, argv = dict(os.environ), sys.argv
    sys.argv = ["hdee-coordinator", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
        code: Any = 0
    except SystemExit as error:
        code = error.code
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
    return Made(int(code or 0), out.getvalue(), err.getvalue())


def told(*arguments: str) -> Any:
    made = command(*arguments, "--format", "json")
    assert made.returncode == 0, made.stderr
    return json.loads(made.stdout)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def expert_folder(run: Local, domain: str) -> Path:
    return next(path for path in run.folders.experts.iterdir() if path.name.startswith(domain))


def test_the_mixture_generates_in_plain_transformers_as_it_does_here(
    run: Local, mixture: Path, tmp_path: Path
) -> None:
    plain = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PLAIN, str(mixture), "o my lord", "12"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"},
    )
    assert plain.returncode == 0, plain.stderr[-3000:]
    found = json.loads(plain.stdout)
    here = told("generate", str(mixture), "--prompt", "o my lord", "--tokens", "12")
    assert found["kind"] == "HdeeMoeForCausalLM"
    assert found["text"].startswith(("o my lord" + here["text"]).rstrip())
    assert {one["expert"] for one in here["tokens"]} == {"drama"}


def test_unequal_experts_are_shown_with_what_a_token_costs(run: Local, mixture: Path) -> None:
    look = told("mix", "show", str(mixture))
    drama, python = look["experts"]
    assert (drama["name"], drama["ffn_width"]) == ("drama", 32)
    assert (python["name"], python["ffn_width"]) == ("python", 64)
    layers = [one for one in look["layers"] if one["layer"] is not None]
    assert [one["expert_parameters"] for one in layers] == [[3 * 32 * 32, 3 * 64 * 32]] * 2
    assert drama["flops"] < python["flops"] < look["all_flops"]
    assert look["owned"] == ["embeddings", "head"]
    parameters = look["shared_parameters"] + drama["parameters"] + python["parameters"]
    assert parameters == look["parameters"]
    assert "router prefix from counts" in command("mix", "show", str(mixture)).stdout


def test_an_expert_joins_and_leaves_without_a_trace(
    run: Local, mixture: Path, tmp_path: Path
) -> None:
    folder = expert_folder(run, "python")
    text = run.root / "python" / "0.txt"
    wide, back = tmp_path / "wide", tmp_path / "back"
    facts = told(
        *("mix", "add", str(mixture), f"snake={folder}", "--text", str(text), "--into", str(wide))
    )
    assert [one["name"] for one in facts["experts"]] == ["drama", "python", "snake"]
    told("mix", "remove", str(wide), "snake", "--into", str(back))
    assert files_of(back) == files_of(mixture)
    assert b"snake" not in b"".join(files_of(back).values())


def test_an_expert_of_a_run_comes_with_its_text(run: Local, mixture: Path, tmp_path: Path) -> None:
    name = expert_folder(run, "python").name
    alone, again = tmp_path / "alone", tmp_path / "again"
    told("mix", "remove", str(mixture), "python", "--into", str(alone))
    told(
        *("mix", "add", str(alone), f"python={name}", "--run", str(run.run_file)),
        *("--into", str(again)),
    )
    assert files_of(again) == files_of(mixture)
    newer = told(
        *("mix", "replace", str(mixture), f"drama={name}", "--run", str(run.run_file)),
        *("--into", str(tmp_path / "newer")),
    )
    assert [one["ffn_width"] for one in newer["experts"]] == [64, 64]


def test_variants_are_chosen_on_dev_and_the_best_stands_beside_all_others(run: Local) -> None:
    levers = run.root / "levers.toml"
    levers.write_text(
        'routers = ["prefix", "linear/ridge", "linear/hidden"]\nselections = ["soft"]\n'
        'owned = ["auto", []]\n'
    )
    flags = ("--levers", str(levers), "--also", "linear/ridge soft own ffn")
    first = MixingResults.model_validate_json(
        json.dumps(told("mix", "compare", str(run.run_file), *flags))
    )
    groups = [one.groups["own"] for one in first.variants]
    assert groups == sorted(groups)
    assert first.variants[0].name == first.chosen
    assert "linear/ridge soft" in first.refused
    assert "owned" in first.refused["linear/ridge soft"]
    columns = {"seed", "dense", "dense+seed", "ensemble", "ensemble+seed", "best single"}
    columns |= {"average of weights", "mixture", "linear/ridge soft own ffn"}
    assert {*first.perplexity} == {"drama", "python", "drama > python", "python > drama"}
    assert all({*row} == columns for row in first.perplexity.values())
    results = json.loads((run.folders.state / "results.json").read_text())
    results.pop("table")
    scored = Results.model_validate_json(json.dumps(results))
    for domain in scored.domains:
        here = first.perplexity[domain.domain]
        assert here["ensemble"] == pytest.approx(domain.columns["MHe-IHo"].perplexity)
        assert here["dense+seed"] == pytest.approx(domain.columns["dense+seed"].perplexity)
    own = {one.b: one for one in first.comparisons if (one.a, one.where) == ("mixture", "own")}
    assert own["best single"].verdict == "better"
    assert {one.text for one in first.usage} == {*first.perplexity}
    for one in first.usage:
        assert sum(one.gates.values()) == pytest.approx(1, abs=1e-5)
    again = told("mix", "compare", str(run.run_file), *flags)
    assert MixingResults.model_validate_json(json.dumps(again)) == first
    assert (run.folders.state / "mixing.json").exists()
    best = run.folders.state / "mixing.toml"
    made = told(
        *("mix", "make", str(run.run_file), "--recipe", str(best), "--dry-run"),
        *("--into", str(run.root / "best")),
    )
    assert made["recipe"] == first.variants[0].recipe
    assert not (run.root / "best").exists()


def test_a_checkpoint_is_exported_as_the_run_itself_exports_it(run: Local, tmp_path: Path) -> None:
    folder = expert_folder(run, "drama")
    told("export", str(run.run_file), folder.name, "--into", str(tmp_path / "drama"))
    assert files_of(tmp_path / "drama") == files_of(folder)
    narrow = next(path for path in run.folders.experts.glob("seed-ffn32-*"))
    told("export", str(run.run_file), narrow.name, "--into", str(tmp_path / "seed"))
    assert files_of(tmp_path / "seed") == files_of(narrow)


def test_a_router_is_trained_and_nothing_else(run: Local, tmp_path: Path) -> None:
    recipe = tmp_path / "linear.toml"
    recipe.write_text('owned = []\n[router]\nkind = "linear"\nsource = "hidden"\n')
    begun, tuned = tmp_path / "begun", tmp_path / "tuned"
    told("mix", "make", str(run.run_file), "--recipe", str(recipe), "--into", str(begun))
    found = told(
        *("mix", "train", str(begun), str(run.run_file), "--into", str(tuned)),
        *("--steps", "6", "--rate", "2e-2", "--penalty", "0.1"),
    )
    before, after = (load_file(folder / "model.safetensors") for folder in (begun, tuned))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if ".router." in name}
    assert set(found["perplexity"]["all own"]) == {"seed", "seed, same steps", "before", "after"}
    assert found["control_rate"] == 1e-2, "the rate of the run's dense baseline"
    still = told(
        *("mix", "train", str(begun), str(run.run_file), "--into", str(tmp_path / "still")),
        *("--steps", "6", "--rate", "2e-2", "--control-rate", "1e-9"),
    )
    learned, hardly = (one["perplexity"]["all own"] for one in (found, still))
    assert learned["seed, same steps"] < 0.99 * learned["seed"]
    assert hardly["seed, same steps"] == pytest.approx(hardly["seed"], rel=1e-4)
    assert told("mix", "show", str(tuned))["tunings"] == ["router, 6 steps"]
    assert not list((run.folders.state / "mixing").iterdir())
    refused = command("mix", "remove", str(tuned), "drama", "--into", str(tmp_path / "none"))
    assert refused.returncode == 1
    assert "trained as one" in refused.stderr


def test_experts_and_ensembles_speak(run: Local) -> None:
    alone = told("generate", str(expert_folder(run, "drama")), "--prompt", "o my", "--tokens", "4")
    both = told("generate", str(run.run_file), "--prompt", "o my", "--tokens", "4")
    seeded = told("generate", str(run.run_file), "--prompt", "o", "--tokens", "4", "--with-seed")
    assert alone["text"]
    assert both["experts"] == ["drama", "python"]
    assert {one["expert"] for one in both["tokens"]} == {"drama"}
    assert seeded["experts"] == ["drama", "python", "seed"]
    drawn = [
        told(
            *("generate", str(run.run_file), "--prompt", "o", "--tokens", "8"),
            *("--temperature", "1.5", "--rng-seed", seed),
        )["text"]
        for seed in ("1", "1", "2")
    ]
    assert drawn[0] == drawn[1]
    shown = command(
        "generate",
        str(run.run_file),
        "--prompt",
        "o my lord thy",
        "--tokens",
        "9",
        "--show-experts",
    )
    assert shown.returncode == 0
    assert "drama" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("mix", "make", "{run}"), 1, "is there already, expected a new folder"),
        (("mix", "make", "{run}", "--into", "{new}", "--scheme", "MHo-IHe"), 1, "MHe-IHo"),
        (("mix", "make", "{run}", "--into", "{new}", "--recipe", "{recipe}"), 1, "top_k 9"),
        (("mix", "make", "{run}", "--into", "{new}", "--recipe", "{none}"), 2, "cannot be read"),
        (("mix", "make", "{run}", "--into", "{new}", "--recipe", "{bad}"), 2, "router.kind"),
        (("mix", "make", "{run}", "--into", "{new}", "--expert", "law"), 2, "NAME=FOLDER"),
        (("mix", "make", "{run}", "--into", "{new}", "--text", "law=x"), 2, "no --expert law"),
        (("mix", "make", "{run}", "--into", "{new}", "--expert", "law={none}"), 1, "no folder"),
        (("mix", "make", "{run}", "--into", "{new}", "--expert", "law={drama}"), 1, "--text law"),
        (("mix", "make", "{run}", "--into", "{new}", "--expert", "law={foreign}"), 1, "tokenizer"),
        (
            (
                "mix",
                "make",
                "{run}",
                "--into",
                "{new}",
                "--expert",
                "law={nan}",
                "--text",
                "law={text}",
            ),
            1,
            "NaN",
        ),
        (
            ("mix", "make", "{run}", "--into", "{new}", "--expert", "drama={drama}"),
            1,
            "2 are called",
        ),
        (("mix", "make", "{unfinished}"), 1, "the run is not finished"),
        (("mix", "make", "{none}"), 2, "cannot be read"),
        (("mix", "compare", "{unfinished}"), 1, "the run is not finished"),
        (("mix", "compare", "{run}", "--levers", "{bad}"), 2, "bad.toml"),
        (("mix", "compare", "{run}", "--also", "oracle"), 1, "no variant is called so"),
        (("mix", "show", "{none}"), 1, "no mixture"),
        (("mix", "remove", "{mixture}", "sea", "--into", "{new}"), 1, "['drama', 'python']"),
        (("mix", "remove", "{single}", "python", "--into", "{new}"), 1, "the only one"),
        (("mix", "add", "{mixture}", "law={drama}", "--into", "{new}"), 1, "--text"),
        (
            ("mix", "add", "{mixture}", "law={drama}", "--text", "{text}", "--into", "{single}"),
            1,
            "already",
        ),
        (("mix", "train", "{mixture}", "{run}", "--into", "{new}"), 1, "no weights to train"),
        (("export", "{run}", "law", "--into", "{new}"), 1, "no checkpoint of this name"),
        (("export", "{run}", "law", "--into", "{single}"), 1, "is there already"),
        (("generate", "{none}", "--prompt", "o"), 1, "no such folder"),
        (("generate", "{drama}", "--prompt", "o", "--tokens", "99"), 1, "the context holds 32"),
    ],
)
def test_bad_input_ends_with_its_exit_code_and_words(
    run: Local, mixture: Path, tmp_path: Path, arguments: Any, code: int, words: str
) -> None:
    places = {"run": run.run_file, "mixture": mixture, "new": tmp_path / "new"}
    places |= {"none": tmp_path / "none", "drama": expert_folder(run, "drama")}
    places |= {"text": run.root / "drama" / "0.txt"}
    wanted = {
        name
        for name in ("recipe", "bad", "foreign", "nan", "single", "unfinished")
        if any(f"{{{name}}}" in one for one in arguments)
    }
    for name in wanted:
        places[name] = PLACES[name](run, mixture, tmp_path)
    made = command(*(one.format(**places) for one in arguments))
    assert made.returncode == code, (made.returncode, made.stderr)
    assert words in made.stderr
    assert "Traceback" not in made.stderr
    assert not (tmp_path / "new").exists()


def greedy_recipe(run: Local, mixture: Path, folder: Path) -> Path:
    (folder / "k.toml").write_text('[router]\nselection = "top_k"\ntop_k = 9\n')
    return folder / "k.toml"


def bad_recipe(run: Local, mixture: Path, folder: Path) -> Path:
    (folder / "bad.toml").write_text('[router]\nkind = "oracle"\n')
    return folder / "bad.toml"


def foreign(run: Local, mixture: Path, folder: Path) -> Path:
    """An expert whose tokenizer calls a token otherwise."""
    shutil.copytree(expert_folder(run, "drama"), folder / "foreign")
    (folder / "foreign" / "tokenizer.model").unlink()
    path = folder / "foreign" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [merges[1], merges[0], *merges[2:]]
    path.write_text(json.dumps(tokenizer))
    return folder / "foreign"


def damaged(run: Local, mixture: Path, folder: Path) -> Path:
    shutil.copytree(expert_folder(run, "drama"), folder / "nan")
    path = folder / "nan" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(tensors, path, metadata={"format": "pt"})
    return folder / "nan"


def single(run: Local, mixture: Path, folder: Path) -> Path:
    made = command("mix", "remove", str(mixture), "drama", "--into", str(folder / "single"))
    assert made.returncode == 0, made.stderr
    return folder / "single"


def unfinished(run: Local, mixture: Path, folder: Path) -> Path:
    write_run(folder / "begun")
    return folder / "begun" / "run.toml"


PLACES = {
    "recipe": greedy_recipe,
    "bad": bad_recipe,
    "foreign": foreign,
    "nan": damaged,
    "single": single,
    "unfinished": unfinished,
}
