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

    def forward(self, contexts, rounded=lambda x: x):
        """What the output head is multiplied by, for all tokens of all contexts one after another, in 64 bits. A generator: it yields the
        name of a matrix and what to multiply by it, and is sent the product. So several passes may share what becomes of a matrix.
        What attention multiplies is `rounded`: queries, keys, values and the exponentials of scores."""
        x = self.weights["token_embd"][[token for context in contexts for token in context]].astype(np.float64)
        count, epsilon, size = len(x), self.field["llama.attention.layer_norm_rms_epsilon"], x.shape[1] // self.heads
        lengths = [len(context) for context in contexts]
        positions = np.concatenate([np.arange(length) for length in lengths])
        angles = positions[:, None] * self.field["llama.rope.freq_base"] ** (-np.arange(0, size, 2) / size)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

        def rotate(values):
            a, b = np.moveaxis(values.reshape(count, -1, size // 2, 2), -1, 0)
            return np.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(count, -1, size)

        def norm(values, name):
            return values / np.sqrt((values * values).mean(-1, keepdims=True) + epsilon) * self.weights[name]

        ends = np.cumsum(lengths)
        spans = [slice(end - length, end) for end, length in zip(ends, lengths)]
        masks = [np.triu(np.full((length, length), -np.inf), 1) for length in lengths]
        for layer in range(self.field["llama.block_count"]):
            name = f"blk.{layer}."
            h = norm(x, name + "attn_norm")
            q, k = rotate((yield name + "attn_q", h)), rotate((yield name + "attn_k", h))
            v = (yield name + "attn_v", h).reshape(count, self.key_heads, size)
            q, k, v = rounded(q), rounded(k), rounded(v)
            heads = np.empty_like(q)
            for head in range(self.heads):
                key = head * self.key_heads // self.heads
                for span, mask in zip(spans, masks):
                    scores = q[span, head] @ k[span, key].T
                    scores /= size**0.5
                    scores += mask
                    scores -= scores.max(-1, keepdims=True)
                    np.exp(scores, scores)
                    heads[span, head] = rounded(scores) @ v[span, key] / scores.sum(-1, keepdims=True)
            x = x + (yield name + "attn_output", heads.reshape(count, -1))
            h = norm(x, name + "ffn_norm")
            gate = yield name + "ffn_gate", h
            up = yield name + "ffn_up", h
            x = x + (yield name + "ffn_down", gate / (1 + np.exp(-gate)) * up)
        return norm(x, "output_norm")
