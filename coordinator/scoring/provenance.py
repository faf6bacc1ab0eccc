"""What the results say of where they come from: every checkpoint, versions and digests."""

import platform
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import transformers

from coordinator.folders import RunFolders
from coordinator.ledger.accepted import AcceptedRow
from coordinator.names import checkpoint_name
from coordinator.runfile import RunFile
from coordinator.scoring.evidence import MODEL_FILE
from coordinator.scoring.lineup import Lineup
from coordinator.scoring.outcome import CheckpointFacts
from coordinator.text.prepared import Prepared
from protocol.digests import digest_bytes, digest_value
from protocol.ids import Digest
from protocol.specs import ExpertSpec
from shared.sizing import train_flops
from shared.version import SOFTWARE_VERSION


def names_of(accepted: Mapping[Digest, AcceptedRow]) -> dict[Digest, str]:
    """Spec digest to what the whole checkpoint is called."""
    return {digest: checkpoint_name(row.spec) for digest, row in accepted.items()}


def checkpoint_facts(
    lineup: Lineup,
    accepted: Mapping[Digest, AcceptedRow],
    names: Mapping[Digest, str],
    dev_perplexity: Mapping[Digest, Mapping[str, float]],
) -> tuple[CheckpointFacts, ...]:
    """The accepted checkpoints of the lineup, and those that they were trained or made from.

    `dev_perplexity` is by spec digest and domain.
    """
    return tuple(
        _facts(accepted[digest], lineup, names, dev_perplexity.get(digest, {}))
        for digest in _with_ancestors(_digests(lineup), accepted)
    )


def versions() -> dict[str, str]:
    """Of what computed the results."""
    return {
        "hdee": SOFTWARE_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": np.__version__,
    }


def digests(run: RunFile, folders: RunFolders, prepared: Prepared) -> dict[str, str]:
    """Of what the run was made from: the run file's contents, the tokenizer, the split key."""
    return {
        "run_file": digest_value(run),
        "tokenizer": prepared.tokenizer.digest,
        "split_key": digest_bytes(folders.split_key.read_bytes()),
    }


def _digests(lineup: Lineup) -> Iterable[Digest]:
    yield lineup.seed
    if lineup.dense is not None:
        yield lineup.dense
    for scheme in lineup.schemes.values():
        yield from scheme.experts.values()
    yield from lineup.others


def _with_ancestors(
    digests: Iterable[Digest], accepted: Mapping[Digest, AcceptedRow]
) -> dict[Digest, None]:
    """Each once, in order of first mention; what was not accepted is left out."""
    found: dict[Digest, None] = {}
    left = list(digests)
    while left:
        digest = left.pop(0)
        if digest in found or digest not in accepted:
            continue
        found[digest] = None
        spec = accepted[digest].spec
        left += [] if spec.parent is None else [spec.parent]
        left += [one.spec for one in spec.ingredients]
    return found


def _facts(
    row: AcceptedRow,
    lineup: Lineup,
    names: Mapping[Digest, str],
    dev_perplexity: Mapping[str, float],
) -> CheckpointFacts:
    spec, manifest = row.spec, row.manifest
    return CheckpointFacts(
        name=names[spec.digest],
        kind=spec.kind,
        domain=spec.domain,
        round=_round(spec, lineup),
        spec=spec.digest,
        file=manifest.blob(MODEL_FILE).digest,
        parent=None if spec.parent is None else names[spec.parent],
        ingredients=spec.ingredients,
        shape=spec.shape,
        trains=spec.trains,
        lora=spec.lora,
        train=spec.train,
        flops=train_flops(spec),
        worker=row.worker,
        schemes=tuple(
            scheme for scheme, one in lineup.schemes.items() if spec.digest in one.experts.values()
        ),
        curve=manifest.curve,
        dev_perplexity=dict(dev_perplexity),
    )


def _round(spec: ExpertSpec, lineup: Lineup) -> int | None:
    """The round of the domain that an expert, or an average for one, is for."""
    return lineup.rounds.get(spec.domain) if spec.kind in ("expert", "average") else None
