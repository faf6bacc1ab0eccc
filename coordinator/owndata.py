"""Whether a worker may offer a domain whose text stays on its machine. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.lifecycle import Refused
from protocol.errors import ErrorCode
from protocol.owndata import DomainOffer, OwnDataTerms

MAX_DOMAINS_A_WORKER = 4


@dataclass(frozen=True)
class Offered:
    """A domain that was offered before. `counts`: its worker may still train it."""

    worker: str
    offer: DomainOffer
    counts: bool = True


def refusal_of(
    offer: DomainOffer, worker: str, terms: OwnDataTerms | None, before: Sequence[Offered]
) -> Refused | None:
    """Why `worker` may not offer this; None: it may, or it has done so already.

    `terms` None: the run takes no own data, or its seeds are not planned yet.
    """
    if terms is None:
        return Refused(
            ErrorCode.FORBIDDEN,
            "this run takes no own data: its run file has no [own_data]; join without "
            "--offer-domain, or ask its operator",
        )
    same = [one for one in before if one.offer.domain == offer.domain]
    if same:
        return _named_before(offer, worker, same[0])
    return _taken(offer, terms) or _too_many(worker, terms, before) or _too_little(offer, terms)


def _named_before(offer: DomainOffer, worker: str, held: Offered) -> Refused | None:
    name = offer.domain
    if held.worker != worker:
        return Refused(
            ErrorCode.WRONG_STATE, f"{name}: another worker has this domain, choose another name"
        )
    if held.offer != offer:
        return Refused(
            ErrorCode.WRONG_STATE,
            f"{name}: you offered it with other text before ({held.offer.train.num_documents} "
            f"documents, now {offer.train.num_documents}); choose another name for this text",
        )
    return None


def _taken(offer: DomainOffer, terms: OwnDataTerms) -> Refused | None:
    if offer.domain not in terms.reserved:
        return None
    return Refused(
        ErrorCode.WRONG_STATE, f"{offer.domain}: the run has this name, choose another one"
    )


def _too_many(worker: str, terms: OwnDataTerms, before: Sequence[Offered]) -> Refused | None:
    counted = [one for one in before if one.counts]
    if len(counted) >= terms.max_domains:
        words = f"the run takes {terms.max_domains} own domains, and has them"
        return Refused(ErrorCode.FORBIDDEN, words)
    mine = sum(one.worker == worker for one in counted)
    if mine >= MAX_DOMAINS_A_WORKER:
        words = f"you offered {mine} domains already, expected at most {MAX_DOMAINS_A_WORKER}"
        return Refused(ErrorCode.FORBIDDEN, words)
    return None


def _too_little(offer: DomainOffer, terms: OwnDataTerms) -> Refused | None:
    found = offer.train.num_tokens
    if found >= terms.min_train_tokens:
        return None
    return Refused(
        ErrorCode.BAD_REQUEST,
        f"{offer.domain}: {found} train tokens, expected at least {terms.min_train_tokens} for "
        f"{terms.num_steps} steps; give it more text",
    )
