"""Writes a Llama checkpoint (safetensors, bf16) as GGUF, with the `gguf` package. Runs with numpy, not with the script.

llama.cpp rotates neighbouring components of a head where the published layout rotates components half a head apart, so the
rows of the query and key matrices are put in its order.
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np

OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


def tensors(folder):
    """Name and elements, as the upper halves of floats, of every tensor; mapped, not read."""
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{path}: {name} is {entry['dtype']}, not BF16")
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            yield name, np.memmap(path, np.uint16, "r", 8 + length + begin, ((end - begin) // 2,)).reshape(shape)


def target_name(name):
    stem = name.removesuffix(".weight")
    if stem in OUTER:
        return OUTER[stem] + ".weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{LAYER[part]}.weight"


def interleaved(matrix, heads):
    """Rows of each head in the order 0, half, 1, half + 1, ..."""
    rows, columns = matrix.shape
    return matrix.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def widened(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


def add_vocabulary(writer, folder, config):
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    pieces = sorted(tokenizer["model"]["vocab"].items(), key=lambda piece: piece[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    kinds = gguf.TokenType

    def kind(text, number):
        if text == tokenizer["model"]["unk_token"]:
            return kinds.UNKNOWN
        if number in special:
            return kinds.CONTROL
        return kinds.BYTE if text.startswith("<0x") else kinds.NORMAL

    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in pieces])
    writer.add_token_scores([-float(number) for _, number in pieces])
    writer.add_token_types([int(kind(*piece)) for piece in pieces])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    args = parser.parse_args()
    config = json.loads((args.checkpoint / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    writer = gguf.GGUFWriter(args.gguf, "llama")
    writer.add_name("random weights")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    bf16 = args.dtype == "bf16"
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16 if bf16 else gguf.LlamaFileType.ALL_F32)
    add_vocabulary(writer, args.checkpoint, config)
    for name, tensor in tensors(args.checkpoint):
        if name.endswith("q_proj.weight"):
            tensor = interleaved(tensor, heads)
        if name.endswith("k_proj.weight"):
            tensor = interleaved(tensor, kv_heads)
        if bf16 and tensor.ndim > 1:
            writer.add_tensor(target_name(name), tensor.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(target_name(name), widened(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
