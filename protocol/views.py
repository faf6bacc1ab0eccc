"""What the public routes show of a run, its workers, its work and its results."""

from typing import Literal

from protocol.assignments import State
from protocol.ids import AssignmentId, Digest, DomainId, PeerId, RunId, WorkerId
from protocol.messages import Fencing, Label, Text, Version
from protocol.owndata import OwnDomainView
from protocol.specs import Kind
from protocol.values import Amount, Count, Items, Number, Positive, Value

WorkerState = Literal["idle", "working", "offline", "banned"]
Phase = Literal["preparing", "seeding", "planning", "training", "scoring", "finished", "stalled"]


class WorkerView(Value):
    """One worker, as GET /v1/workers shows it. `credit` in training FLOPs of accepted work.

    `assignment` is the first of `assignments`, one for each of its devices that works.
    """

    worker: WorkerId
    name: str
    state: WorkerState
    draining: bool
    device: str
    free_memory_bytes: Count
    flops_per_second: Amount
    assignment: AssignmentId | None
    accepted: Count
    credit: Amount
    age_seconds: Amount
    assignments: Items[AssignmentId] = ()


class AssignmentView(Value):
    """One assignment, as GET /v1/assignments shows it."""

    assignment: AssignmentId
    spec: Digest
    backup_of: AssignmentId | None
    kind: Kind
    domain: DomainId
    ffn_width: Positive
    lora_rank: Positive | None = None
    num_steps: Count
    state: State
    worker: WorkerId | None
    fencing: Fencing
    step: Count
    durable_step: Count | None
    loss: Number | None
    reason: str
    age_seconds: Amount


class DomainView(Value):
    """One domain, as GET /v1/domains shows it. `seed_perplexity` is on its dev shard."""

    domain: DomainId
    difficulty: Label | None
    seed_perplexity: Amount | None
    num_documents: Count
    num_train_tokens: Count
    train_shard: Digest
    dev_shard: Digest


class ExpertView(Value):
    """One accepted checkpoint, as GET /v1/experts shows it. `folder` is relative to the run's.

    `self_reported`: it was trained on its worker's own data, and not verified on its own domain.
    """

    spec: Digest
    kind: Kind
    domain: DomainId
    ffn_width: Positive
    lora_rank: Positive | None = None
    num_steps: Count
    worker: WorkerId
    manifest: Digest
    schemes: Items[Label]
    folder: str
    self_reported: bool = False


class TableRow(Value):
    """One domain's test perplexity and bits per byte, by column.

    `best_single` names the expert in the column of that name, chosen on dev text. `tied` holds
    groups of columns that rest on the same expert of this domain: none of a group wins here. No
    expert trained on a domain that is `held_out`.
    """

    domain: DomainId
    perplexity: dict[str, Number]
    bits_per_byte: dict[str, Number]
    best_single: Text = ""
    tied: Items[Items[Label]] = ()
    held_out: bool = False


class ResultTable(Value):
    """GET /v1/results: rows domains, columns models and ensembles."""

    columns: Items[Label]
    rows: Items[TableRow]


class PerplexityView(Value):
    """How well a checkpoint predicts a domain's dev text; test text is for the results alone."""

    checkpoint: Label
    domain: DomainId
    perplexity: Amount
    bits_per_byte: Amount
    age_seconds: Amount


class StatusView(Value):
    """GET /v1/status: the whole run at a glance. Needs no token.

    `perplexities` are the newest ones on dev text, newest first. `roles` maps a role to the age in
    seconds of its last sign of life. `own_domains` are no part of the run's plan and results.
    """

    run: RunId
    coordinator: PeerId
    phase: Phase
    phase_reason: Text
    phase_age_seconds: Amount
    paused: bool
    round: Count
    assignments: dict[str, int]
    workers: dict[str, int]
    experts_accepted: Count
    experts_planned: Count
    eta_seconds: Amount | None
    perplexities: Items[PerplexityView]
    results: ResultTable | None
    results_age_seconds: Amount | None
    software_version: Version
    protocol_version: Positive
    server_time: Amount
    uptime_seconds: Amount
    roles: dict[str, Amount]
    own_domains: Items[OwnDomainView] = ()
