"""Own data: text that stays on a worker's machine, of which the coordinator learns counts alone.

The worker gets an expert of its domain. What leaves the machine is named here (`DomainOffer`,
`SelfReport`) and the expert itself; no text, no tokens, no digests of documents.
"""

from typing import Annotated, Literal

from pydantic import Field

from protocol.blobs import BlobRef
from protocol.ids import DomainId, WorkerId
from protocol.values import Amount, Items, Positive, Value

Text = Annotated[str, Field(max_length=500)]
Perplexity = Annotated[float, Field(ge=1, allow_inf_nan=False)]

OwnState = Literal["waiting", "open", "running", "submitted", "accepted", "refused"]
"""waiting: the seed that its expert starts from is not accepted yet."""


class OwnDataTerms(Value):
    """GET /v1/own-data: what the run does with own data.

    An expert of `ffn_width` features takes `num_steps` steps on at least `min_train_tokens` tokens
    of the `tokenizer`, whose blob anybody may read. It is accepted if on the text of each of the
    run's domains its perplexity is at most `harm_percent` above that of the model that it starts
    from. `reserved` are names that no own domain may have.
    """

    tokenizer: BlobRef
    vocab_size: Positive
    ffn_width: Positive
    num_steps: Positive
    min_train_tokens: Positive
    harm_percent: Amount
    max_domains: Positive
    reserved: Items[DomainId]


class OwnShard(Value):
    """A shard that stays where it is: the digest and size of its file, and how much text it is."""

    blob: BlobRef
    num_documents: Positive
    num_tokens: Positive


class DomainOffer(Value):
    """POST /v1/own-data/domains: this worker has text of a domain. Repeating it is harmless."""

    domain: DomainId
    train: OwnShard
    dev: OwnShard


class SelfReport(Value):
    """POST /v1/own-data/domains/{domain}/report: perplexity on the worker's own dev shard.

    Of the model that training started from, and of the expert. Nobody can verify it.
    """

    perplexity_before: Perplexity
    perplexity_after: Perplexity


class OwnDomainView(Value):
    """One own domain, as GET /v1/own-data/domains and every status show it.

    The perplexities are self-reported; what `state` accepted means was measured on the run's
    domains, never on this one.
    """

    domain: DomainId
    worker: WorkerId
    state: OwnState
    reason: Text
    num_documents: Positive
    num_train_tokens: Positive
    perplexity_before: Perplexity | None
    perplexity_after: Perplexity | None
    folder: str
    age_seconds: Amount
