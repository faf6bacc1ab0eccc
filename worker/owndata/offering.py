"""What a worker says to the coordinator about own data: counts, and two perplexities."""

import logging
from collections.abc import Callable
from pathlib import Path

from protocol.messages import Offer
from protocol.owndata import DomainOffer, OwnDataTerms, SelfReport
from worker.contact import persist
from worker.errors import CoordinatorUnreachable, Refused
from worker.membership import Membership
from worker.owndata.children import Guest, OwnDataError, ask_child
from worker.owndata.texts import DEV, OwnNote, OwnText

log = logging.getLogger(__name__)

Say = Callable[[str], None]


async def offer_own_texts(member: Membership, *, say: Say) -> None:
    """Prepares the text of every own domain on this machine, then offers their counts.

    Raises OwnDataError for text that cannot be used, Refused for what the run does not take, and
    CoordinatorUnreachable.
    """
    if not member.own.offered:
        return
    terms = await persist(member.client.own_data_terms, say=say)
    tokenizer = await member.holdings.fetch_input(terms.tokenizer, public=True, needed=())
    for text in member.own.offered:
        say(f"own data {text.domain}: reading {text.path}")
        offer = await _prepare(member, text, terms, tokenizer)
        twin = member.own.twin_of(offer)
        if twin is not None:
            raise OwnDataError(
                f"--offer-domain: {text.domain} and {twin} are the same text; offer it once"
            )
        say(describe_own(offer, terms))
        await persist(lambda: member.call(lambda: member.client.offer_domain(offer)), say=say)  # noqa: B023
        member.own.keep(OwnNote(offer=offer, terms=terms))


def describe_own(offer: DomainOffer, terms: OwnDataTerms) -> str:
    """What is offered, and what comes of it."""
    train, dev = offer.train, offer.dev
    return (
        f"own data {offer.domain}: {train.num_documents} documents of {train.num_tokens} tokens to "
        f"train on, {dev.num_documents} held back; they stay here\n"
        f"  its expert: FFN {terms.ffn_width}, {terms.num_steps} steps once the seed is there, "
        f"accepted if at most {terms.harm_percent:g} % worse on the run's own domains"
    )


async def report_own(member: Membership, offer: Offer, expert: Path, *, guest: Guest) -> None:
    """Measures seed and expert on the dev shard of an own domain, and tells the coordinator.

    It is measured as `guest`. Nothing for other domains. What goes wrong with it costs the report
    alone.
    """
    note = member.own.note_of(offer.shard.digest)
    if note is None or offer.parent is None:
        return
    weights = offer.parent.manifest.blob("model.safetensors")
    domain = note.offer.domain
    try:
        report = await ask_child(
            "measure",
            [
                *("--shard", str(member.own.folder(domain) / DEV)),
                *("--spec", offer.spec.model_dump_json()),
                *("--parent", str(member.folder.blobs.path(weights.digest))),
                *("--expert", str(expert)),
                *("--threads", str(guest.num_threads)),
            ],
            SelfReport,
            guest=guest,
        )
        await member.call(lambda: member.client.report_domain(domain, report))
    except (OwnDataError, CoordinatorUnreachable, Refused, OSError, KeyError, ValueError) as error:
        log.warning("nothing is reported of own data %s: %s", domain, error)
        return
    member.screen.say(
        f"own data {domain}: perplexity on held-back text {report.perplexity_before:.2f} before, "
        f"{report.perplexity_after:.2f} after"
    )


async def _prepare(
    member: Membership, text: OwnText, terms: OwnDataTerms, tokenizer: Path
) -> DomainOffer:
    return await ask_child(
        "prepare",
        [
            *("--domain", text.domain, "--path", str(text.path)),
            *("--tokenizer", str(tokenizer), "--terms", terms.model_dump_json()),
            *("--into", str(member.own.folder(text.domain))),
        ],
        DomainOffer,
        guest=Guest(niceness=member.settings.niceness),
    )
