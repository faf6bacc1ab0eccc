"""Before an offer is taken: would its spec fit? What does not goes back at once, with the peak."""

import logging

from protocol.messages import Offer
from shared.training.assignment import PilotAssignment
from shared.training.pilot import OFFER_SHARE, Fits, Pilots, is_worth_a_trial
from worker.asking import give_back
from worker.device import TRAINER_LOG, Device
from worker.membership import Membership

log = logging.getLogger(__name__)

FILE = "pilots.json"


async def fits_here(member: Membership, device: Device, offer: Offer) -> bool:
    """Whether to take an offer. False: it was given back, as not even one sequence fitted.

    A trial that is not worth it, or fails for another reason than memory, stops no offer: training
    itself finds out. Raises Refused if we are expelled.
    """
    capability, screen = device.capability, device.board
    if not is_worth_a_trial(offer.spec, capability, expires_in=offer.expires_in):
        return True
    pilot = PilotAssignment(
        spec=offer.spec,
        device=capability.device,
        num_threads=capability.num_threads,
        memory_bytes=device.memory_cap(),
    )
    screen.say("trying whether a step fits into memory")
    pilots = Pilots(
        device.path(FILE),
        log=device.path(TRAINER_LOG),
        niceness=device.settings.niceness,
        environment=device.environment,
    )
    found = await pilots.find(pilot, seconds=OFFER_SHARE * offer.expires_in)
    if isinstance(found, Fits):
        if found.micro_batch < offer.spec.train.micro_batch:
            screen.say(f"a step fits with micro-batches of {found.micro_batch}")
        return True
    if found is None or found.get("code") != "out_of_memory":
        log.warning("the trial step says nothing: %s", found)
        return True
    screen.say(f"giving {offer.assignment} back: it does not fit into memory")
    await give_back(
        member,
        offer,
        "out_of_memory",
        f"a trial step failed: {found['message']}",
        peak_memory_bytes=found.get("peak_memory_bytes"),
    )
    return False
