"""Tiny Llamas as others publish them: Hugging Face directories, GGUF files, tokenizers."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

# Models this small lose time with threads.
torch.set_num_threads(1)

VOCAB = 300
CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50_000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 0,
}


def llama(**changes: Any) -> LlamaForCausalLM:
    """A Llama with large random weights, so that no part of it is negligible."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.5 if parameter.dim() == 1 else 0.0, 0.2)
    return model.eval()


def save(model: LlamaForCausalLM, folder: Path, **options: Any) -> Path:
    """The model as a Hugging Face directory, with a tokenizer."""
    disable_progress_bar()
    model.save_pretrained(folder, **options)
    byte_level().save(str(folder / "tokenizer.json"))
    return folder


TEXT = "the king and the onion return value for a river of salt, none in the town by the sea"


def byte_level() -> Tokenizer:
    """A byte-level BPE with two special tokens, of two ids less than a model of VOCAB has."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True) for name in ("<|end|>", "<|begin|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB - 2,
        min_frequency=1,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    assert tokenizer.get_vocab_size() == VOCAB - 2
    return tokenizer


NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_gguf(model: LlamaForCausalLM, path: Path, **metadata: Any) -> Path:
    """The model as llama.cpp's converter writes it, in fp32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    add_tokenizer(writer, config.vocab_size, metadata.pop("pre", "gpt-2"))
    for key, value in metadata.items():
        writer.add_string(key, value)
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        weight = parameter.detach().float().numpy()
        stem = name.removesuffix(".weight")
        if stem.endswith(("q_proj", "k_proj")):
            count = heads[stem[-6]]
            halves = weight.reshape(count, 2, len(weight) // count // 2, -1)
            weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        writer.add_tensor(f"{gguf_name(stem)}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(stem: str) -> str:
    if stem.startswith("model.layers."):
        _, _, layer, part = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[part]}"
    return {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}.get(stem, "output")


def add_tokenizer(writer: gguf.GGUFWriter, vocab_size: int, pre: str) -> None:
    described = json.loads(byte_level().to_str())
    names = sorted(described["model"]["vocab"], key=described["model"]["vocab"].__getitem__)
    names += [f"[unused{number}]" for number in range(vocab_size - len(names))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(names)
    writer.add_token_types([3, 3, *([1] * (vocab_size - 2))])
    writer.add_token_merges([" ".join(pair) for pair in described["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(0)
