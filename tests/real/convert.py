#!/usr/bin/env python3
"""Turns a GGUF file of the llama architecture into a directory as Hugging Face has them.

    convert.py FILE.gguf DIRECTORY [--dtype f32|bf16]

Weights are dequantised by the package `gguf`; the tokenizer is written from the file's metadata (`gpt2`, byte-level BPE). In 32
bits the tensors are exactly those of the file. What the file has that this cannot say is an error.
"""

import argparse
import json
import re
from pathlib import Path

import numpy as np
from gguf import GGUFReader, dequantize

# llama.cpp's names of pre-tokenizers, and what the tokenizers of those models have in their tokenizer.json.
PRE_TOKENIZERS = {
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ],
    },
}
NORMAL, CONTROL = 1, 3
TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def name_of(tensor: str) -> str:
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", tensor)
    if layer:
        return f"model.layers.{layer[1]}.{TENSORS[layer[2]]}.weight"
    return f"{TENSORS[tensor.removesuffix('.weight')]}.weight"


def unpermuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as they were before they were laid out for a rotation of neighbouring elements."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def as_bytes(weight: np.ndarray, dtype: str) -> bytes:
    weight = np.ascontiguousarray(weight, dtype="<f4")
    if dtype == "f32":
        return weight.tobytes()
    # To the nearest bfloat16, ties to even.
    bits = weight.view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_safetensors(path: Path, tensors: list[tuple[str, np.ndarray]], dtype: str) -> None:
    header, at, width = {}, 0, {"f32": 4, "bf16": 2}[dtype]
    for name, weight in tensors:
        end = at + weight.size * width
        header[name] = {"dtype": dtype.upper(), "shape": list(weight.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, weight in tensors:
            file.write(as_bytes(weight, dtype))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    arguments = parser.parse_args()

    reader = GGUFReader(arguments.file)
    field = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    wanted = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}
    for name, value in wanted.items():
        if field[name] != value:
            parser.error(f"{name} is {field[name]!r}, not {value!r}")
    pre_tokenizer = PRE_TOKENIZERS.get(field["tokenizer.ggml.pre"])
    if pre_tokenizer is None:
        parser.error(f"tokenizer.ggml.pre is {field['tokenizer.ggml.pre']!r}, not one of {', '.join(PRE_TOKENIZERS)}")
    if scaling := [name for name in field if "rope.scaling" in name]:
        parser.error(f"{scaling[0]} is not read")

    heads, key_heads = field["llama.attention.head_count"], field["llama.attention.head_count_kv"]
    names = {tensor.name for tensor in reader.tensors}
    tensors = []
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        weight = weight.reshape(tuple(int(size) for size in reversed(tensor.shape)))
        if tensor.name.endswith("attn_q.weight"):
            weight = unpermuted(weight, heads)
        elif tensor.name.endswith("attn_k.weight"):
            weight = unpermuted(weight, key_heads)
        tensors.append((name_of(tensor.name), weight))

    directory = arguments.directory
    directory.mkdir(parents=True, exist_ok=True)

    def write(name: str, value: dict) -> None:
        (directory / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    tokens, kinds = field["tokenizer.ggml.tokens"], field["tokenizer.ggml.token_type"]
    if unknown := sorted(set(kinds) - {NORMAL, CONTROL}):
        parser.error(f"tokens of the types {unknown} are not read")
    bos, eos = field["tokenizer.ggml.bos_token_id"], field["tokenizer.ggml.eos_token_id"]
    special = {
        name: {"content": tokens[field[f"tokenizer.ggml.{key}_token_id"]], "special": True, "single_word": False,
               "lstrip": False, "rstrip": False, "normalized": False}
        for name, key in [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    }
    write("config.json", {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": field["llama.embedding_length"],
        "intermediate_size": field["llama.feed_forward_length"],
        "num_hidden_layers": field["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "hidden_act": "silu",
        "max_position_embeddings": field["llama.context_length"],
        # The file has the number in 32 bits; the shortest decimal of those bits is what was written there.
        "rms_norm_eps": float(str(np.float32(field["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": field["llama.rope.freq_base"],
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": "output.weight" not in names,
        "vocab_size": len(tokens),
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": {"f32": "float32", "bf16": "bfloat16"}[arguments.dtype],
    })
    write("generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
    write("tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": field["llama.context_length"],
        "chat_template": field["tokenizer.chat_template"],
    } | {name: token["content"] for name, token in special.items()})
    write("tokenizer.json", {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
            for id, (token, kind) in enumerate(zip(tokens, kinds)) if kind == CONTROL
        ],
        "normalizer": None,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: id for id, token in enumerate(tokens)},
            "merges": field["tokenizer.ggml.merges"],
        },
    })
    write_safetensors(directory / "model.safetensors", tensors, arguments.dtype)
    print(f"{directory}: {len(tensors)} tensors, {len(tokens)} tokens")


if __name__ == "__main__":
    main()
