"""results.json of one run or of several replicates: read, checked, refused with the reason."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from coordinator.scoring.outcome import Results

BESIDE = frozenset({"table"})
"""What results.json has beside the fields of `Results`."""

OWN_DIGESTS = frozenset({"run_file"})
"""Digests in which replicates differ: each has a run file of its own, with its rng_seed."""

FOLLOWING = {"rng_seed", "num_steps", "schedule_steps"}
"""What may differ between the experts of replicates: the random numbers, and what follows them."""

ABSENT = "nothing of that name"
MAX_NAMED = 5


class ReportError(Exception):
    """There is nothing to report, or what there is does not hold together."""


def read_results(path: Path) -> Results:
    """The results at `path`.

    Raises ReportError when the run is not finished, and when the file is not one of results: the
    message names the field, its value and what was expected.
    """
    try:
        contents = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ReportError(f"{path} is missing: the run is not finished") from error
    except (OSError, ValueError) as error:
        raise ReportError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(contents, dict):
        raise ReportError(f"{path}: {type(contents).__name__}, expected an object of results")
    part = {name: value for name, value in contents.items() if name not in BESIDE}
    try:
        results = Results.model_validate_json(json.dumps(part))
    except ValidationError as error:
        raise ReportError(f"{path}: {_in_words(error)}") from error
    for problem in problems_of(results):
        raise ReportError(f"{path}: {problem}")
    return results


def problems_of(results: Results) -> Iterator[str]:
    """Where parts of `results` speak of what other parts do not have."""
    if not results.schemes:
        yield "schemes {}: expected at least one"
    if not results.domains:
        yield "domains []: expected at least one"
    yield from _unknown_names(results)
    for index, trace in enumerate(results.traces):
        sizes = [len(weights) for weights in trace.weights]
        expected = [len(trace.tokens)] * len(trace.members)
        if sizes != expected or not trace.members or not trace.tokens:
            yield f"traces.{index}.weights of lengths {sizes}: expected {expected}, not empty"
    yield from (
        f"{where} {value}: expected above 0"
        for where, value in _perplexities(results)
        if value <= 0
    )


def check_replicates(runs: Mapping[str, Results]) -> None:
    """Raise ReportError unless `runs`, by file, are one experiment under different rng_seeds."""
    (first, base), *others = runs.items()
    seen = {base.rng_seed: first}
    for name, run in others:
        if run.rng_seed in seen:
            raise ReportError(
                f"{name}: rng_seed {run.rng_seed}: expected another one than {seen[run.rng_seed]} "
                "has, or it is no replicate but a repetition"
            )
        seen[run.rng_seed] = name
        found, expected = _identity(run), _identity(base)
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                raise ReportError(
                    f"{name}: no replicate of {first}: {key}: {found.get(key, ABSENT)}; expected "
                    f"{expected.get(key, ABSENT)}"
                )


def _identity(run: Results) -> dict[str, str]:
    """What replicates have in common. Classes and rounds may differ: they follow the seed."""
    text = {
        f"domains.{one.domain}": f"{one.role}, {one.num_labels} labels, {one.num_bytes} bytes"
        for one in run.domains
    }
    digests = {
        f"digests.{name}": digest for name, digest in run.digests.items() if name not in OWN_DIGESTS
    }
    schemes = ", ".join(sorted(run.schemes))
    return {"schemes": schemes, "unit": run.unit, **text, **digests, **_recipes(run)}


def _recipes(run: Results) -> dict[str, str]:
    """How seeds and experts were trained; an expert's steps may follow what its run measured."""
    found: dict[str, set[str]] = {}
    for kind, varying in (("seed", {"rng_seed"}), ("expert", FOLLOWING)):
        for one in run.checkpoints:
            if one.kind == kind:
                for field, value in one.train.model_dump(exclude=varying).items():
                    found.setdefault(f"{kind}.{field}", set()).add(str(value))
    return {key: " and ".join(sorted(values)) for key, values in found.items()}


def _unknown_names(results: Results) -> Iterator[str]:
    checkpoints = {one.name for one in results.checkpoints}
    for scheme, experts in results.schemes.items():
        for domain, expert in experts.items():
            if expert not in checkpoints:
                yield f"schemes.{scheme}.{domain} {expert!r}: expected the name of a checkpoint"
    for domain_scores in results.domains:
        for scheme, scores in domain_scores.schemes.items():
            for field in ("best_single", "oracle"):
                name = getattr(scores, field)
                if name not in domain_scores.models:
                    yield (
                        f"domains.{domain_scores.domain}.schemes.{scheme}.{field} {name!r}: "
                        "expected one of its models"
                    )


def _perplexities(results: Results) -> Iterator[tuple[str, float]]:
    """Every perplexity whose logarithm a report takes, and where it stands."""
    for scores in results.domains:
        modes = [mode for scheme in scores.schemes.values() for mode in scheme.modes.items()]
        for name, one in (*scores.columns.items(), *scores.models.items(), *modes):
            yield f"domains.{scores.domain}: perplexity of {name}", one.perplexity
    for memory in results.remembered:
        where = f"remembered.{memory.scheme}.{memory.domain}"
        yield f"{where}: perplexity of {memory.expert}", memory.perplexity
        yield f"{where}: seed", memory.seed
    for checkpoint in results.checkpoints:
        for domain, perplexity in checkpoint.dev_perplexity.items():
            yield f"checkpoints.{checkpoint.name}: dev_perplexity.{domain}", perplexity


def _in_words(error: ValidationError) -> str:
    problems: Sequence[str] = [
        f"{'.'.join(map(str, one['loc']))}: {_short(one['input'])}: {one['msg']}"
        for one in error.errors(include_url=False)
    ]
    more = len(problems) - MAX_NAMED
    return "; ".join(problems[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
