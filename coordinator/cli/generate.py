"""`hdee-coordinator generate`: text from an expert, a mixture, or a run's ensemble."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.errors import VerbError, WrongUsage
from coordinator.cli.mixture_words import mixing, opened_run, run_folder_words, staged
from coordinator.cli.options import Format
from shared.tables import show, show_json, show_table

if TYPE_CHECKING:
    from coordinator.mixing.speaking import Spoken, Voice


def generate(  # noqa: PLR0913  # each is an option
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|RUN.toml",
            help="A mixture's or an expert's folder, or a finished run's file: its ensemble",
        ),
    ],
    prompt: Annotated[str, typer.Option("--prompt", help="The text to go on from")],
    tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many")] = 60,
    temperature: Annotated[
        float, typer.Option(min=0.0, max=100.0, help="0: always the most likely token")
    ] = 0.0,
    top_p: Annotated[
        float,
        typer.Option("--top-p", help="Draw among the most likely with this share of the mass"),
    ] = 1.0,
    rng_seed: Annotated[int, typer.Option(min=0, help="The same one draws the same text")] = 0,
    scheme: Annotated[
        str | None, typer.Option("--scheme", help="Of a run: whose experts [the best on dev text]")
    ] = None,
    with_seed: Annotated[
        bool, typer.Option("--with-seed", help="Of a run: the seed is one more member")
    ] = False,
    show_experts: Annotated[
        bool, typer.Option("--show-experts", help="Say which expert weighs most at each token")
    ] = False,
    format: Format = "text",
) -> None:
    """Let a model go on from a prompt.

    A run's posterior ensemble runs all of its experts at every token and weighs them by how likely
    each found the text so far; a mixture runs those that its router turns to.

    Example: hdee-coordinator generate my-run/mixture --prompt "def main" --show-experts

    Example: hdee-coordinator generate my-run/run.toml --prompt "Step 1." --temperature 0.8
    """
    with mixing():
        from coordinator.mixing.speaking import speak  # noqa: PLC0415
        from shared.mixing.generation import Sampling  # noqa: PLC0415

        sampling = Sampling(temperature=temperature, top_p=top_p, rng_seed=rng_seed)
        voice = _voice(source, scheme, with_seed=with_seed)
        tell = staged(f"generating {tokens} tokens")
        spoken = speak(voice, prompt, max_new_tokens=tokens, sampling=sampling, tell=tell)
    text = "".join(one.text for one in spoken)
    if format == "json":
        show_json(
            {
                "prompt": prompt,
                "text": text,
                "experts": list(voice.names),
                "tokens": [
                    {"text": one.text, "expert": one.expert, "weight": one.weight} for one in spoken
                ],
            }
        )
        return
    if show_experts:
        show_table(("expert", ">weight", "text"), _stretches(spoken))
        return
    show(prompt + text)


def _stretches(spoken: "list[Spoken]") -> list[tuple[str, str, str]]:
    """Tokens in a row of which the same expert weighs most, with its mean weight."""
    rows: list[tuple[str, list[float], str]] = []
    for one in spoken:
        if rows and rows[-1][0] == one.expert:
            expert, weights, text = rows[-1]
            rows[-1] = expert, [*weights, one.weight], text + one.text
        else:
            rows.append((one.expert, [one.weight], one.text))
    return [
        (expert, f"{sum(weights) / len(weights):.2f}", repr(text)[1:-1])
        for expert, weights, text in rows
    ]


def _voice(source: Path, scheme: str | None, *, with_seed: bool) -> "Voice":
    from coordinator.mixing.comparing import best_scheme  # noqa: PLC0415
    from coordinator.mixing.speaking import open_ensemble, open_voice  # noqa: PLC0415

    if source.suffix != ".toml":
        if scheme is not None or with_seed:
            raise WrongUsage(f"--scheme, --with-seed: of a run's ensemble; {source} is no run file")
        if source.is_dir() and not (source / "config.json").exists():
            raise VerbError(f"{source}: {_instead(source)}")
        return open_voice(source)
    run = opened_run(source)
    members = run.members(scheme or best_scheme(run, stage=staged))
    return open_ensemble(run, [*members, *([run.seed] if with_seed else [])])


def _instead(folder: Path) -> str:
    """What a folder without a model is, and what to name in its place."""
    if (folder / "adapter_config.json").exists():
        return "a LoRA adapter alone: mix it over its base with mix make --expert, or merge it"
    if (folder / "run.toml").exists():
        return run_folder_words(folder)
    return "no config.json there, expected the folder of a mixture or of an expert, or a run file"
