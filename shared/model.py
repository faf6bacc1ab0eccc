"""A Llama of a shape: build, load, narrow and save.

Weights are fp32. Initial weights are drawn here, tensor by tensor in the
order of `tensorfiles.model_tensors`, so that they do not hang on another library's version.
Importing this module loads torch and transformers, which takes seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaForCausalLM,
    LlamaMLP,
    LlamaRotaryEmbedding,
)
from typing_extensions import override

from protocol.specs import ModelShape
from shared.shards import BOS_ID
from shared.tensorfiles import (
    TensorFileError,
    check_file,
    model_tensors,
    read_header,
    write_tensors,
)

_INITIAL_STD = 0.02
_FFN_PROBE = "model.layers.0.mlp.gate_proj.weight"


def llama_config(shape: ModelShape) -> LlamaConfig:
    """The Hugging Face configuration of `shape`: SDPA attention, fp32."""
    return LlamaConfig(  # type: ignore[call-arg]  # it takes more than its signature names
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.ffn_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.norm_eps,
        initializer_range=_INITIAL_STD,
        tie_word_embeddings=shape.tied_embeddings,
        bos_token_id=BOS_ID,
        eos_token_id=None,
        dtype=torch.float32,
        attn_implementation="sdpa",
    )


def build(shape: ModelShape, *, rng_seed: int) -> LlamaForCausalLM:
    """Fresh weights: norms 1, everything else normal with standard deviation 0.02."""
    model = _empty(shape)
    generator = torch.Generator().manual_seed(rng_seed)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, (_, form) in model_tensors(shape).items():
            if len(form) == 1:
                parameters[name].fill_(1.0)
            else:
                parameters[name].normal_(0.0, _INITIAL_STD, generator=generator)
    return model


def load(path: Path, shape: ModelShape) -> LlamaForCausalLM:
    """The model in a file, narrowed to `shape.ffn_width` when its FFNs are wider.

    Narrowing keeps the first rows of gate and up and the first columns of down, which is what a
    nested seed is trained for. Raises TensorFileError before anything is allocated when the file's
    tensors do not fit `shape`, or when its FFNs are narrower.
    """
    width = _file_width(path)
    if width < shape.ffn_width:
        raise TensorFileError(
            f"{path.name}: FFNs of width {width}, expected at least {shape.ffn_width}"
        )
    check_file(path, model_tensors(shape.model_copy(update={"ffn_width": width})))
    tensors = load_file(path)
    forms = model_tensors(shape)
    model = _empty(shape)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            extents = tuple(slice(0, extent) for extent in forms[name][1])
            parameter.copy_(tensors[name][extents])
    return model


def save(model: LlamaForCausalLM, path: Path) -> None:
    """Writes the weights as fp32 safetensors, whole or not at all. Raises OSError."""
    write_tensors(
        path,
        {
            name: parameter.detach().to("cpu", torch.float32).contiguous().numpy()
            for name, parameter in model.named_parameters()
        },
    )


@contextmanager
def ffn_prefix(model: LlamaForCausalLM, width: int) -> Iterator[None]:
    """Inside, the model computes with the first `width` features of every FFN only.

    For a model that this module made. Gradients reach the full weights; those of the other rows are
    zero. Raises ValueError for a width that the model does not have, TypeError for other models.
    """
    full = model.config.intermediate_size
    if not 1 <= width <= full:
        raise ValueError(f"width {width}: expected from 1 to {full}")
    mlps = [layer.mlp for layer in model.model.layers]
    if not all(isinstance(mlp, PrefixMLP) for mlp in mlps):
        raise TypeError("model: its FFNs have no prefix; expected one from `build` or `load`")
    for mlp in mlps:
        mlp.width = width
    try:
        yield
    finally:
        for mlp in mlps:
            mlp.width = full


class PrefixMLP(LlamaMLP):
    """An FFN that computes with its first `width` features.

    The width is a plain attribute of the module, so that a compiled model keeps one graph a width.
    """

    width: int

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.width == self.intermediate_size:
            return super().forward(x)
        gate = functional.linear(x, self.gate_proj.weight[: self.width])
        up = functional.linear(x, self.up_proj.weight[: self.width])
        return functional.linear(self.act_fn(gate) * up, self.down_proj.weight[:, : self.width])


def _empty(shape: ModelShape) -> LlamaForCausalLM:
    """A model whose weights are not set yet, without paying for an initialisation."""
    config = llama_config(shape)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        for layer in model.model.layers:
            layer.mlp = PrefixMLP(config)
            layer.mlp.width = shape.ffn_width
    model.to_empty(device="cpu")
    if shape.tied_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model.model.rotary_emb = LlamaRotaryEmbedding(config=config)
    return model


def _file_width(path: Path) -> int:
    entry = read_header(path).get(_FFN_PROBE)
    if entry is None or len(entry.shape) != 2:
        raise TensorFileError(f"{path.name}: tensor {_FFN_PROBE} is missing")
    return entry.shape[0]
