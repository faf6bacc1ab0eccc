"""What crosses a wire: frozen values, states and their transitions, digests.

No I/O, no clock, no torch: standard library and pydantic only.

values       the frozen, strict base class and the bounded number types
ids          digests, peer ids, slugs: strings with a fixed form
digests      canonical bytes and their SHA-256; the digest of a blob from its pieces
specs        what to train: ModelShape, TrainSpec, ExpertSpec
blobs        a blob's reference and its piece list; what a shard holds
manifests    the files of a checkpoint
capability   what a worker advertises of its hardware
assignments  states of an assignment and the table of allowed transitions
certificates membership of a run, signed by the coordinator
messages     what workers ask and are answered, by REST route
views        what the public routes show
records      what peers publish in the DHT
errors       error codes and the body that every refusal carries
versions     which versions of all this a coordinator understands
"""

PROTOCOL_VERSION = 2
"""Raised with the first release that changes a message, a record or a digest: see `versions`."""
