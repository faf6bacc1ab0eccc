"""`hdee-coordinator plan`: what a run trains, how its schemes balance, and what that will cost."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

import typer

from coordinator.cli.errors import VerbError
from coordinator.cli.options import Database, Format, RunPath
from coordinator.database import open_ledger
from coordinator.folders import RunFolders
from coordinator.ledger import queries
from coordinator.ledger.queries import RunSnapshot
from coordinator.planning.errors import PlanError
from coordinator.planning.outlook import UTILISATION, Outlook, outlook
from coordinator.pretrained.looking import given_vocabulary, prepared_vocabulary
from coordinator.runfile import RunFile, load_run_file
from coordinator.scoring.outcome import BudgetFacts
from protocol.specs import ExpertSpec
from shared.tables import show, show_json, show_table
from shared.words import amount


def plan(
    run_file: RunPath,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Reckon before anything is fetched: parameters, FLOPs, memory, hours by GPU",
        ),
    ] = False,
    database: Database = None,
    format: Format = "text",
) -> None:
    """Show a run's plan: the domains' difficulty, each scheme's experts, and the proof of balance.

    Before the run has begun, or with --dry-run, it shows what the run will cost, with classes as
    they are pinned or made up.
    """
    run = load_run_file(run_file)
    snapshot = None if dry_run else _snapshot(run, database)
    try:
        prepared = None if dry_run else prepared_vocabulary(run)
        expected = outlook(run, prepared or given_vocabulary(run))
    except PlanError as error:
        raise VerbError(f"{run_file}: {error}") from error
    if format == "json":
        show_json(_facts(expected, snapshot))
        return
    if snapshot is not None and any(row.difficulty for row in snapshot.domains):
        _show_domains(run, snapshot)
        _show_experts(run, snapshot)
    else:
        _show_costs(expected)
    _show_budgets(expected.budgets, run.plan.unit)
    _show_search(expected)


def _snapshot(run: RunFile, database: str | None) -> RunSnapshot | None:
    """The run as the ledger has it; None before it has begun."""
    folders = RunFolders(run.folder)
    if not folders.prepared.exists():
        return None
    ledger = open_ledger(run, folders, database)
    try:
        with ledger.read() as connection:
            return queries.snapshot(connection)
    finally:
        ledger.close()


def _show_domains(run: RunFile, snapshot: RunSnapshot) -> None:
    show("difficulty, by the seed's perplexity on dev text:\n")
    known = sorted(
        (row for row in snapshot.domains if row.difficulty is not None),
        key=lambda row: row.seed_perplexity or 0.0,
    )
    show_table(
        ("domain", ">seed perplexity", "class", "because"),
        [
            (
                row.domain,
                f"{row.seed_perplexity:.2f}",
                row.difficulty or "",
                "pinned" if run.domains[row.domain].difficulty else "measured",
            )
            for row in known
            if row.domain in run.domains
        ],
    )
    held_out = sorted(set(run.domains) - set(run.trained))
    show(f"\nheld out: {', '.join(held_out) or 'none'}\n")


def _show_experts(run: RunFile, snapshot: RunSnapshot) -> None:
    size = "FFN width" if run.ranks is None else "LoRA rank"
    show(f"experts ({size} x steps) by scheme; what is not planned yet waits for measurements:\n")
    rows = [row for row in snapshot.assignments if row.spec.kind == "expert"]
    cells = {
        (scheme, row.spec.domain): f"{_size(row.spec)} x {row.spec.train.num_steps}"
        + ("" if row.state == "accepted" else f" ({row.state})")
        for row in rows
        for scheme in row.schemes
    }
    show_table(
        ("domain", *run.plan.schemes),
        [
            (domain, *(cells.get((scheme, domain), "-") for scheme in run.plan.schemes))
            for domain in run.trained
        ],
    )
    others = [row for row in snapshot.assignments if row.spec.kind != "expert"]
    show("")
    show_table(
        ("kind", "text", ">FFN width", ">steps", ">peak rate", "state"),
        [
            (
                row.spec.kind if not row.schemes else row.schemes[0],
                row.spec.domain,
                _cell(row.spec.shape.ffn_width, row.spec.lora_rank),
                str(row.spec.train.num_steps),
                f"{row.spec.train.peak_learning_rate:g}",
                str(row.state),
            )
            for row in others
        ],
    )
    show("")


def _show_costs(expected: Outlook) -> None:
    assumed = " (classes are made up: no seed has measured the domains yet)"
    show(f"what is to be trained{assumed if expected.assumed else ''}:\n")
    columns = ("kind", ">FFN width", ">steps", ">count", ">parameters", ">without embeddings")
    show_table(
        (*columns, ">tokens", ">FLOPs each", ">GPU memory", ">file"),
        [
            (
                row.kind,
                _cell(row.ffn_width, row.lora_rank),
                f"{row.num_steps:,}",
                str(row.count),
                f"{row.parameters / 1e6:.2f}M",
                f"{row.body_parameters / 1e6:.2f}M",
                f"{row.tokens / 1e6:.1f}M",
                f"{row.flops:.3g}",
                amount(row.gpu_bytes),
                amount(row.file_bytes),
            )
            for row in expected.rows
        ],
    )
    known = expected.vocabulary
    show(f"\nvocabulary: {known.num_tokens:,} tokens, {known.source}")
    hours = ", ".join(f"{name} {_hours(value)}" for name, value in expected.hours.items())
    show(f"all of it: {expected.flops:.3g} FLOPs. On one device at {UTILISATION:.0%} of its peak")
    show(f"(an assumption): {hours}\n")


def _size(spec: ExpertSpec) -> int:
    return spec.lora_rank or spec.shape.ffn_width


def _cell(ffn_width: int, lora_rank: int | None) -> str:
    """In a column of FFN widths: with LoRA the rank, which tells specs apart there."""
    return str(ffn_width) if lora_rank is None else f"rank {lora_rank}"


def _hours(value: float) -> str:
    return f"{value:.1f} h" if value >= 0.1 else f"{value * 3600:.0f} s"


def _show_budgets(budgets: Sequence[BudgetFacts], unit: str) -> None:
    other = "ffn_steps" if unit == "flops" else "flops"
    show(f"budgets; {unit} binds, {other} is shown beside it:\n")
    show_table(
        ("scheme", ">FLOPs", ">ratio", ">FFN width x steps", ">ratio"),
        [
            (
                row.scheme,
                f"{row.flops:.4g}",
                f"{row.flops_ratio:.4f}",
                f"{row.ffn_steps:,}",
                f"{row.ffn_steps_ratio:.4f}",
            )
            for row in budgets
        ],
    )


def _show_search(expected: Outlook) -> None:
    if not expected.search:
        return
    show("\nbeside the budgets, to find steps and rates (at most, and part of no comparison):\n")
    show_table(
        ("for", ">trainings", ">FLOPs", ">of all"),
        [
            (
                row.purpose,
                str(row.num_trainings),
                f"{row.flops:.4g}",
                f"{row.flops / expected.flops:.1%}",
            )
            for row in expected.search
        ],
    )


def _facts(expected: Outlook, snapshot: RunSnapshot | None) -> dict[str, object]:
    rows = () if snapshot is None else snapshot.assignments
    return {
        "outlook": json.loads(json.dumps(asdict(expected), default=lambda one: one.model_dump())),
        "domains": [
            {
                "domain": row.domain,
                "difficulty": row.difficulty,
                "seed_perplexity": row.seed_perplexity,
            }
            for row in (() if snapshot is None else snapshot.domains)
            if row.difficulty is not None
        ],
        "assignments": [
            {"spec": row.spec.model_dump(mode="json"), "schemes": row.schemes, "state": row.state}
            for row in rows
        ],
    }
