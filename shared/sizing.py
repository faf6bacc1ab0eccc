"""Parameters, FLOPs, memory and bytes of a spec: pure arithmetic, no torch.

Counts of parameters and file sizes are exact. FLOPs are those of the matrix multiplications, which
bound the speed. Memory is a closed form with measured constants (see `training_memory_bytes`).
"""

from protocol.capability import Device
from protocol.specs import ExpertSpec, Lora, ModelShape, Projection

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
    """All parameters: embeddings, of which there is one when they are tied, body and norms."""
    norms = shape.hidden_size * (2 * shape.num_layers + 1)
    embedding = 0 if shape.tied_embeddings else shape.vocab_size * shape.hidden_size
    return matmul_parameters(shape) + embedding + norms


def matmul_parameters(shape: ModelShape) -> int:
    """Weights that every token is multiplied with: the body and the output embedding."""
    hidden = shape.hidden_size
    layer = 2 * hidden * (hidden + shape.kv_size) + 3 * hidden * shape.ffn_width
    return shape.num_layers * layer + shape.vocab_size * hidden


def adapter_parameters(shape: ModelShape, lora: Lora) -> int:
    """Weights of the adapters of all layers: rank times inputs and outputs of each adapted map."""
    hidden, kv, ffn = shape.hidden_size, shape.kv_size, shape.ffn_width
    sides: dict[Projection, int] = {
        "q_proj": 2 * hidden,
        "k_proj": hidden + kv,
        "v_proj": hidden + kv,
        "o_proj": 2 * hidden,
        "gate_proj": hidden + ffn,
        "up_proj": hidden + ffn,
        "down_proj": hidden + ffn,
    }
    return shape.num_layers * lora.rank * sum(sides[one] for one in lora.projections)


def step_flops(spec: ExpertSpec) -> float:
    """FLOPs of one optimizer step: 6 a matmul weight and token, and causal attention.

    Attention costs 6 * layers * hidden * sequence a token: scores and values, forward and backward,
    over half the sequence on average. A nested seed counts the mean over its widths. Frozen tensors
    count as trained ones where others of the same kind are trained, so that every spec of a plan is
    measured alike. With LoRA all matrices are frozen and have no gradients of their own: they count
    4, forward and through, and the adapters 6. The few matrices that no gradient has to pass, such
    as the first layer's, count as the others.
    """
    if spec.lora is not None:
        return _lora_flops(spec, spec.lora)
    widths = spec.nested_widths or (spec.shape.ffn_width,)
    shapes = [spec.shape.model_copy(update={"ffn_width": width}) for width in widths]
    weights = sum(matmul_parameters(shape) for shape in shapes) / len(shapes)
    attention = spec.shape.num_layers * spec.shape.hidden_size * spec.train.sequence_length
    return 6.0 * (weights + attention) * spec.train.tokens_per_step


def _lora_flops(spec: ExpertSpec, lora: Lora) -> float:
    frozen, trained = matmul_parameters(spec.shape), adapter_parameters(spec.shape, lora)
    attention = spec.shape.num_layers * spec.shape.hidden_size * spec.train.sequence_length
    return (4.0 * frozen + 6.0 * (trained + attention)) * spec.train.tokens_per_step


def trained_parameters(spec: ExpertSpec) -> int:
    """Weights that a checkpoint keeps, frozen ones too; with LoRA those of the adapter alone."""
    if spec.lora is not None:
        return adapter_parameters(spec.shape, spec.lora)
    return num_parameters(spec.shape)


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
    384 and 512. With LoRA weights have no gradients and moments but the adapter's, and layers keep
    somewhat more: 6 runs of 0.8 to 44 million parameters stayed 1 to 10 % below the result. For a
    GPU it is device memory with the driver's context and was not measured;
    activations count at full precision there too, above what bfloat16 needs.
    """
    shape, train = spec.shape, spec.train
    tokens = train.micro_batch * train.sequence_length
    weights = 4 * _FLOAT_BYTES * num_parameters(shape)
    layer = 18 * shape.hidden_size + 4 * shape.ffn_width
    output_gradient = 2 * shape.vocab_size * shape.hidden_size
    if spec.lora is not None:
        trained = adapter_parameters(shape, spec.lora)
        weights = _FLOAT_BYTES * (num_parameters(shape) + 4 * trained)
        layer += 8 * shape.hidden_size + len(spec.lora.projections) * spec.lora.rank
        output_gradient = 0
    activations = _FLOAT_BYTES * tokens * (shape.num_layers * layer + 6 * shape.hidden_size)
    rows = min(tokens, max(1, LOGIT_CHUNK // shape.vocab_size))
    loss = _FLOAT_BYTES * (3 * rows * shape.vocab_size + output_gradient)
    loss_of_allocator = 1.1 if train.accumulation == 1 else 1.35
    return int(_RUNTIME_BYTES[device] + loss_of_allocator * (weights + activations + loss))


def expert_bytes(spec: ExpertSpec) -> int:
    """Upper bound of the finished expert's files: fp32 weights, and an adapter's beside them."""
    adapter = 0 if spec.lora is None else trained_parameters(spec)
    headers = 1 if spec.lora is None else 2
    return _FLOAT_BYTES * (num_parameters(spec.shape) + adapter) + headers * _HEADER_BYTES


def checkpoint_bytes(spec: ExpertSpec) -> int:
    """Upper bound of a training checkpoint: what is trained, two Adam moments, state."""
    return 3 * _FLOAT_BYTES * trained_parameters(spec) + 3 * _HEADER_BYTES


def disk_bytes(spec: ExpertSpec) -> int:
    """Disk that a worker needs besides the shard.

    The trainer keeps two checkpoints and writes a third, the blob store holds two more to serve;
    parent and finished expert lie in both places.
    """
    return 5 * checkpoint_bytes(spec) + 4 * expert_bytes(spec)
