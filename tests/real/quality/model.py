"""The forward pass of a model of the llama architecture in numpy, for its products with other weights."""

import re

import numpy as np
from gguf import GGUFReader, dequantize


class Model:
    """A GGUF file, dequantised, with noise of half a step so that the grid of the file's own format favours no other."""

    def __init__(self, path, seed=0):
        reader, random = GGUFReader(path), np.random.default_rng(seed)
        self.field = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        self.heads, self.key_heads = self.field["llama.attention.head_count"], self.field["llama.attention.head_count_kv"]
        self.weights = {}
        for tensor in reader.tensors:
            weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            # Bytes of a block of 32 weights, which begins with its step.
            block = {"Q4_1": 20, "Q8_0": 34}.get(tensor.tensor_type.name)
            if block:
                steps = np.ascontiguousarray(tensor.data).reshape(-1, block)[:, :2].copy().view(np.float16).astype(np.float32)
                noise = random.uniform(-0.5, 0.5, (steps.shape[0], 32)).astype(np.float32)
                weight = weight.reshape(-1, 32) + steps * noise
            self.weights[tensor.name.removesuffix(".weight")] = weight.reshape(shape)
        self.weights["output"] = self.weights.get("output", self.weights["token_embd"])
        self.matrices = [name for name in self.weights if re.search(r"attn_[qkv]$|attn_output$|ffn_(gate|up|down)$", name)]

    def tokens(self, text: str) -> list[int]:
        """Byte-level BPE; letters, digits one by one, and the rest as GPT-2 splits them."""
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        character = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
        ids = {token: id for id, token in enumerate(self.field["tokenizer.ggml.tokens"])}
        ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(self.field["tokenizer.ggml.merges"])}
        words = r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+"
        tokens = []
        for part in re.findall(r"\d|[^\d]+", text):
            for word in re.findall(words, part):
                pieces = [character[byte] for byte in word.encode()]
                while len(pieces) > 1:
                    at = min(range(len(pieces) - 1), key=lambda i: ranks.get((pieces[i], pieces[i + 1]), len(ranks)))
                    if (pieces[at], pieces[at + 1]) not in ranks:
                        break
                    pieces[at:at + 2] = [pieces[at] + pieces[at + 1]]
                tokens += [ids[piece] for piece in pieces]
        return tokens

    def log_probabilities(self, tokens, product):
        """Of each next token. `product(name, x)` is `x` times the matrix of that name."""
        count, x = len(tokens), self.weights["token_embd"][tokens]
        epsilon, size = self.field["llama.attention.layer_norm_rms_epsilon"], x.shape[1] // self.heads
        angles = np.arange(count)[:, None] * self.field["llama.rope.freq_base"] ** (-np.arange(0, size, 2) / size)
        cos, sin = (f(angles).astype(np.float32)[:, None] for f in (np.cos, np.sin))

        def rotate(values):
            a, b = np.moveaxis(values.reshape(count, -1, size // 2, 2), -1, 0)
            return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(count, -1, size)

        def norm(values, name):
            return values / np.sqrt((values * values).mean(-1, keepdims=True) + epsilon) * self.weights[name]

        mask = np.triu(np.full((count, count), -np.inf, np.float32), 1)
        for layer in range(self.field["llama.block_count"]):
            name = f"blk.{layer}."
            h = norm(x, name + "attn_norm")
            q, k = rotate(product(name + "attn_q", h)), rotate(product(name + "attn_k", h))
            v = product(name + "attn_v", h).reshape(count, self.key_heads, size)
            heads = np.empty_like(q)
            for head in range(self.heads):
                key = head * self.key_heads // self.heads
                scores = q[:, head] @ k[:, key].T / np.float32(size**0.5) + mask
                scores = np.exp(scores - scores.max(-1, keepdims=True))
                heads[:, head] = scores / scores.sum(-1, keepdims=True) @ v[:, key]
            x = x + product(name + "attn_output", heads.reshape(count, -1))
            h = norm(x, name + "ffn_norm")
            gate = product(name + "ffn_gate", h)
            x = x + product(name + "ffn_down", gate / (1 + np.exp(-gate)) * product(name + "ffn_up", h))
        logits = product("output", norm(x, "output_norm"))
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
