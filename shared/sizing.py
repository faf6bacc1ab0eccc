"""Parameters, FLOPs, memory and bytes of a spec: pure arithmetic, no torch.

Counts of parameters and file sizes are exact. FLOPs are those of the matrix multiplications, which
bound the speed. Memory is a closed form with measured constants (see `training_memory_bytes`).
"""

from protocol.capability import Device
from protocol.specs import ExpertSpec, ModelShape

_FLOAT_BYTES = 4
_HEADER_BYTES = 64 * 1024
_RUNTIME_BYTES: dict[Device, int] = {
    "cpu": 420_000_000,
    "cuda": 600_000_000,
    "mps": 420_000_000,
}
LOGIT_CHUNK = 1 << 20
"""Most logits (rows times vocabulary) that the trainer's loss holds at a time."""


def num_parameters(shape: ModelShape) -> int:
    """All parameters: untied input and output embeddings, body and norms."""
    norms = shape.hidden_size * (2 * shape.num_layers + 1)
    return matmul_parameters(shape) + shape.vocab_size * shape.hidden_size + norms


def matmul_parameters(shape: ModelShape) -> int:
    """Weights that every token is multiplied with: the body and the output embedding."""
    hidden = shape.hidden_size
    layer = 4 * hidden * hidden + 3 * hidden * shape.ffn_width
    return shape.num_layers * layer + shape.vocab_size * hidden


def step_flops(spec: ExpertSpec) -> float:
    """FLOPs of one optimizer step: 6 a matmul weight and token, and causal attention.

    Attention costs 6 * layers * hidden * sequence a token: scores and values, forward and backward,
    over half the sequence on average. A nested seed counts the mean over its widths. Frozen tensors
    count as trained ones, so that every spec of a plan is measured alike.
    """
    widths = spec.nested_widths or (spec.shape.ffn_width,)
    shapes = [spec.shape.model_copy(update={"ffn_width": width}) for width in widths]
    weights = sum(matmul_parameters(shape) for shape in shapes) / len(shapes)
    attention = spec.shape.num_layers * spec.shape.hidden_size * spec.train.sequence_length
    return 6.0 * (weights + attention) * spec.train.tokens_per_step


def train_flops(spec: ExpertSpec) -> float:
    """FLOPs of the whole training, `num_steps` steps."""
    return spec.train.num_steps * step_flops(spec)


def training_memory_bytes(spec: ExpertSpec, *, device: Device) -> int:
    """Peak memory of training at the spec's micro-batch.

    On a CPU: resident bytes of the whole trainer process with its runtime. Weights, gradients and
    two moments, activations, and the logits of a chunk, times what the allocator loses: a tenth, or
    a third when several micro-batches are accumulated. The constants were fitted to peaks measured
    with `time -v python -m worker.trainer` (Linux, one thread, 15 runs of 0.03 to 50 million
    parameters), which the result exceeds by 2 to 7 % at hidden sizes to 256 and by 14 to 19 % at
    384 and 512. For a GPU it is device memory with the driver's context and was not measured;
    activations count at full precision there too, above what bfloat16 needs.
    """
    shape, train = spec.shape, spec.train
    tokens = train.micro_batch * train.sequence_length
    weights = 4 * _FLOAT_BYTES * num_parameters(shape)
    layer = 18 * shape.hidden_size + 4 * shape.ffn_width
    activations = _FLOAT_BYTES * tokens * (shape.num_layers * layer + 6 * shape.hidden_size)
    rows = min(tokens, max(1, LOGIT_CHUNK // shape.vocab_size))
    loss = _FLOAT_BYTES * (3 * rows * shape.vocab_size + 2 * shape.vocab_size * shape.hidden_size)
    loss_of_allocator = 1.1 if train.accumulation == 1 else 1.35
    return int(_RUNTIME_BYTES[device] + loss_of_allocator * (weights + activations + loss))


def expert_bytes(spec: ExpertSpec) -> int:
    """Upper bound of the finished expert's file: fp32 weights and a header."""
    return _FLOAT_BYTES * num_parameters(spec.shape) + _HEADER_BYTES


def checkpoint_bytes(spec: ExpertSpec) -> int:
    """Upper bound of a training checkpoint: weights, two Adam moments, state."""
    return 3 * _FLOAT_BYTES * num_parameters(spec.shape) + 3 * _HEADER_BYTES


def disk_bytes(spec: ExpertSpec) -> int:
    """Disk that a worker needs besides the shard.

    The trainer keeps two checkpoints and writes a third, the blob store holds two more to serve;
    parent and finished expert lie in both places.
    """
    return 5 * checkpoint_bytes(spec) + 4 * expert_bytes(spec)
