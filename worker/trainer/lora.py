"""Low-rank adapters beside a model's frozen weights (Hu et al., arXiv 2106.09685).

A is drawn and B is zero, so that training begins at the parent's function, bit for bit.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import skip_init
from transformers.models.llama.modeling_llama import LlamaForCausalLM
from typing_extensions import override

from protocol.specs import ExpertSpec, Lora
from shared.lora import PREFIX, Floats, adapted_modules, merged
from shared.tensorfiles import TensorForm, read_tensors, stream_tensors, write_tensors


class LoraLinear(nn.Module):
    """y = W x + scale * B A x. `weight` is W, the very parameter of the map that this stands for.

    Weights of A [rank, inputs] and B [outputs, rank] are not set yet.
    """

    def __init__(self, weight: nn.Parameter, lora: Lora) -> None:
        super().__init__()
        outputs, inputs = weight.shape
        self.weight = weight
        self.scale = lora.scale
        self.lora_A = skip_init(nn.Linear, inputs, lora.rank, bias=False)
        self.lora_B = skip_init(nn.Linear, lora.rank, outputs, bias=False)

    @override
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.weight)
        # In place: the sum would otherwise need two more tensors of its size.
        return y.add_(self.lora_B(self.lora_A(x)), alpha=self.scale)


def attach(model: LlamaForCausalLM, spec: ExpertSpec) -> None:
    """Freezes a model on the CPU and puts a fresh adapter beside its weights.

    A is normal with a variance of 1 / (3 * inputs), that of PEFT's uniform draw, drawn from
    `rng_seed` module by module in the order of `model_tensors`. Does nothing for a spec without
    LoRA.
    """
    if spec.lora is None:
        return
    generator = torch.Generator().manual_seed(spec.train.rng_seed)
    model.requires_grad_(False)
    for name, _, inputs in adapted_modules(spec.shape, spec.lora):
        owner, _, last = name.rpartition(".")
        adapted = LoraLinear(model.get_parameter(f"{name}.weight"), spec.lora)
        with torch.no_grad():
            adapted.lora_A.weight.normal_(0.0, (3 * inputs) ** -0.5, generator=generator)
            adapted.lora_B.weight.zero_()
        setattr(model.get_submodule(owner), last, adapted)


def adapter_of(model: LlamaForCausalLM) -> dict[str, nn.Parameter]:
    """The adapter's weights, named as in its file; empty for a model without one."""
    return {PREFIX + name: weight for name, weight in model.named_parameters() if ".lora_" in name}


def write_adapter(model: LlamaForCausalLM, path: Path) -> None:
    """Writes the adapter as fp32 safetensors, whole or not at all. Raises OSError."""
    write_tensors(path, {name: _array(weight) for name, weight in adapter_of(model).items()})


def read_adapter(model: LlamaForCausalLM, path: Path) -> None:
    """Puts the adapter of a checked file beside the model's weights."""
    tensors = read_tensors(path)
    with torch.no_grad():
        for name, weight in adapter_of(model).items():
            weight.copy_(torch.from_numpy(tensors[name].copy()))


def write_merged(model: LlamaForCausalLM, path: Path) -> None:
    """Writes the weights with the adapter added to them, as `models.save` writes a model's."""
    weights = {name: weight for name, weight in model.named_parameters() if ".lora_" not in name}
    forms: Mapping[str, TensorForm] = {
        name: ("F32", tuple(weight.shape)) for name, weight in weights.items()
    }

    def read(name: str) -> Floats:
        own = _array(weights[name])
        module = model.get_submodule(name.rpartition(".")[0])
        if not isinstance(module, LoraLinear):
            return own
        a, b = _array(module.lora_A.weight), _array(module.lora_B.weight)
        return merged(own, a, b, scale=module.scale)

    stream_tensors(path, forms, read)


def _array(weight: torch.Tensor) -> Floats:
    return weight.detach().to("cpu", torch.float32).contiguous().numpy()
