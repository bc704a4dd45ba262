"""Writes the fixtures of this directory: GGUF files that the package `gguf` writes, and what it reads back from them.

    pip install -r requirements.txt
    python make.py             writes them
    python make.py --check     compares them with what is committed

- `fixtures/blocks/TYPE.blocks` and `TYPE.f32`: blocks of each type, and the numbers that `gguf` dequantises them to.
- `fixtures/models/NAME.gguf` and `models.json`: tiny models of each architecture and each type, with their logits. Those of a model
  that the tests of the engine have in Hugging Face's format are what transformers gave for that one (`variants/cases.json`). The others
  are computed by `forward` below, in 64 bits, of the weights as `gguf` dequantises them; it is checked against transformers' first.
- `fixtures/tokenizers/NAME.gguf` and `tokenizers.json`: tokenizers of the tests of `kaito-model`, converted as llama.cpp converts
  published ones. What they must encode to is in those tests, or is asked of the package `tokenizers`.
"""

import argparse
import filecmp
import json
import pathlib
import struct
import tempfile

import gguf
import numpy as np
import tokenizers
from gguf import GGMLQuantizationType as T
from tokenizers import Regex, decoders, models, pre_tokenizers

HERE = pathlib.Path(__file__).resolve().parent
CRATES = HERE.parent.parent / "crates"
VARIANTS = CRATES / "kaito-engine/tests/fixtures/variants"
TOKENIZERS = CRATES / "kaito-model/tests/fixtures/tokenizer"

# Where the numbers of f16 lie in a block: their scale has to be sane, everything else may be any bits.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0],
          T.Q2_K: [80, 82], T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}
# About how large a weight is for a scale of 1, as the square root of the mean of its square.
SPREAD = {T.Q2_K: 14, T.Q3_K: 40, T.Q4_K: 330, T.Q5_K: 660, T.Q6_K: 1360}


def seeded(name):
    return np.random.default_rng(list(name.encode()))


def random_blocks(rng, kind, blocks, scale):
    """Blocks of random bits, with scales of about `scale`."""
    data = rng.integers(0, 256, (blocks, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    for place in HALVES[kind]:
        halves = (scale * rng.uniform(0.5, 1.5, blocks)).astype(np.float16)
        data[:, place:place + 2] = halves.view(np.uint8).reshape(blocks, 2)
    return data


def blocks(out):
    out.mkdir()
    for kind in HALVES:
        rng = seeded(kind.name)
        count = 4 if gguf.GGML_QUANT_SIZES[kind][0] == 256 else 8
        data = random_blocks(rng, kind, count, 0.02)
        # All bits set, none set, and scales that are negative, zero and below the smallest normal number of f16.
        data[0], data[1] = 255, 0
        for place in HALVES[kind]:
            for row, value in [(0, -0.75), (1, 3e-6), (2, -0.0)]:
                data[row, place:place + 2] = np.array([value], np.float16).view(np.uint8)
        (out / f"{kind.name}.blocks").write_bytes(data.tobytes())
        numbers = gguf.quants.dequantize(data.reshape(-1), kind)
        (out / f"{kind.name}.f32").write_bytes(numbers.astype("<f4").tobytes())


def safetensors(path):
    """The tensors of a safetensors file of bf16, widened."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__":
            continue
        assert entry["dtype"] == "BF16", entry
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return tensors


def rotated(weight, heads):
    """Rows of queries or keys for rotation of neighbours instead of halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def unrotated(weight, heads):
    return weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def joined(qkv, heads, kv_heads, head):
    """Falcon's groups of queries, a key and a value as blocks of queries, keys and values."""
    groups = qkv.reshape(kv_heads, heads // kv_heads + 2, head, -1)
    parts = [groups[:, :-2], groups[:, -2], groups[:, -1]]
    return np.concatenate([part.reshape(-1, qkv.shape[1]) for part in parts])


def apart(qkv, heads, kv_heads, head):
    q, k, v = np.split(qkv, [heads * head, (heads + kv_heads) * head])
    q = q.reshape(kv_heads, heads // kv_heads, head, -1)
    k, v = (part.reshape(kv_heads, 1, head, -1) for part in (k, v))
    return np.concatenate([q, k, v], 1).reshape(qkv.shape)


class Shape:
    """What the metadata of a model says, under the names of GGUF."""

    def __init__(self, arch, hidden, inner, heads, kv_heads, layers=2, head=None, vocabulary=40, context=64, **more):
        self.arch, self.hidden, self.inner, self.heads, self.kv_heads = arch, hidden, inner, heads, kv_heads
        self.layers, self.vocabulary, self.context, self.more = layers, vocabulary, context, more
        self.head = head or hidden // heads
        self.eps = 1e-5 if arch != "llama" else 1e-6
        self.theta = more.get("rope.freq_base", 10000.0)


# From names of GGUF to those of transformers.
LLAMA = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
         "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
         "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
PHI3 = LLAMA | {"ffn_up": "mlp.gate_up_proj"}
FALCON = {"token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "output": "lm_head",
          "attn_norm": "input_layernorm", "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
          "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}
NAMES = {"llama": (LLAMA, "model.layers."), "phi3": (PHI3, "model.layers."), "falcon": (FALCON, "transformer.h.")}


def converted(shape, tensors):
    """Tensors of transformers as llama.cpp converts them, still in f32."""
    names, layers = NAMES[shape.arch]
    out = {}
    for short, name in names.items():
        places = [(short, name)] + [(f"blk.{i}.{short}", f"{layers}{i}.{name}") for i in range(shape.layers)]
        for ours, theirs in places:
            for end in (".weight", ".bias"):
                if theirs + end in tensors:
                    out[ours + end] = tensors[theirs + end]
    for name in out:
        kind = name.split(".")[-2]
        if shape.arch == "llama" and kind in ("attn_q", "attn_k"):
            out[name] = rotated(out[name], shape.heads if kind == "attn_q" else shape.kv_heads)
        if shape.arch == "falcon" and kind == "attn_qkv":
            out[name] = joined(out[name], shape.heads, shape.kv_heads, shape.head)
    return out


def drawn(name, shape, tied=False, two_norms=False):
    """Random weights under the names of GGUF."""
    rng = seeded(name)
    matrix = lambda rows, cols: rng.normal(0, 1.5 / cols ** 0.5, (rows, cols)).astype(np.float32)
    vector = lambda: rng.uniform(0.5, 1.5, shape.hidden).astype(np.float32)
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    norms = lambda name: {f"{name}.weight": vector()} | ({f"{name}.bias": vector() - 1} if shape.arch == "falcon" else {})
    out = {"token_embd.weight": matrix(shape.vocabulary, shape.hidden)} | norms("output_norm")
    if not tied:
        out["output.weight"] = matrix(shape.vocabulary, shape.hidden)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        out |= norms(at + "attn_norm")
        if two_norms:
            out |= norms(at + "attn_norm_2")
        if shape.arch == "llama":
            out[at + "attn_q.weight"] = matrix(queries, shape.hidden)
            out[at + "attn_k.weight"] = matrix(keys, shape.hidden)
            out[at + "attn_v.weight"] = matrix(keys, shape.hidden)
            out[at + "ffn_gate.weight"] = matrix(shape.inner, shape.hidden)
        else:
            out[at + "attn_qkv.weight"] = matrix(queries + 2 * keys, shape.hidden)
        if shape.arch != "falcon":
            out |= norms(at + "ffn_norm")
        out[at + "attn_output.weight"] = matrix(shape.hidden, queries)
        out[at + "ffn_up.weight"] = matrix((2 if shape.arch == "phi3" else 1) * shape.inner, shape.hidden)
        out[at + "ffn_down.weight"] = matrix(shape.hidden, shape.inner)
    return out


def stored(name, tensors, kinds):
    """Each tensor as (type, bytes); `kinds` has a type for names that end so, and one for all others under "". Vectors are f32."""
    out = {}
    for tensor, values in tensors.items():
        kind = next((kinds[end] for end in kinds if end and tensor.removesuffix(".weight").endswith(end)), kinds[""])
        if values.ndim == 1:
            kind = T.F32
        if kind in SPREAD:
            rng = seeded(name + tensor)
            scale = 1.5 / values.shape[1] ** 0.5 / SPREAD[kind]
            data = random_blocks(rng, kind, values.size // 256, scale).reshape(values.shape[0], -1)
        else:
            data = gguf.quants.quantize(np.ascontiguousarray(values), kind)
        out[tensor] = (kind, data)
    return out


def dequantised(tensors):
    return {name: gguf.quants.dequantize(data, kind) for name, (kind, data) in tensors.items()}


def write(path, shape, tensors, more=(), version=3, split=None):
    """`split` is (number, count, tensors of all) for a part of a model; only the first has the metadata."""
    writer = gguf.GGUFWriter(path, shape.arch if split is None or split[0] == 0 else None)
    if split is not None:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
        writer.add_int32("split.tensors.count", split[2])
    if split is None or split[0] == 0:
        arch = shape.arch
        writer.add_name(path.stem)
        writer.add_block_count(shape.layers)
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.hidden)
        writer.add_feed_forward_length(shape.inner)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        (writer.add_layer_norm_eps if arch == "falcon" else writer.add_layer_norm_rms_eps)(shape.eps)
        writer.add_rope_dimension_count(shape.head)
        writer.add_vocab_size(shape.vocabulary)
        if shape.head * shape.heads != shape.hidden:
            writer.add_key_length(shape.head)
            writer.add_value_length(shape.head)
        for key, value in shape.more.items():
            add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
            add(f"{arch}.{key}", value)
        byte_vocabulary(writer, shape.vocabulary)
    for name, (kind, data) in tensors.items():
        raw = data if kind in (T.F32, T.F16) else data.view(np.uint8)
        writer.add_tensor(name, raw, raw_dtype=None if kind in (T.F32, T.F16) else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if version == 2:
        data = bytearray(path.read_bytes())
        data[4:8] = struct.pack("<I", 2)
        path.write_bytes(data)


def byte_vocabulary(writer, size):
    """A tokenizer for models whose text means nothing."""
    tokens = ["<unk>", "<s>", "</s>"] + [f"▁{chr(97 + i)}" if i < 26 else f"<0x{i:02X}>" for i in range(size - 3)]
    kinds = [2, 3, 3] + [1 if i < 26 else 6 for i in range(size - 3)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-i) for i in range(size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)


def norm(shape, tensors, name, x):
    weight, bias = tensors[name + ".weight"], tensors.get(name + ".bias")
    if bias is None:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + shape.eps) * weight
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + shape.eps) * weight + bias


ERF = np.vectorize(__import__("math").erf)


def forward(shape, tensors, length):
    """The logits after a prompt, of tensors as GGUF has them."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    ids = [(7 * i + 3) % shape.vocabulary for i in range(length)]
    x = w["token_embd.weight"][ids]
    pairs = shape.head // 2
    angles = np.arange(length)[:, None] * shape.theta ** -(np.arange(pairs) / pairs)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rope(rows, heads):
        a, b = np.split(rows.reshape(length, heads, shape.head), 2, -1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    for layer in range(shape.layers):
        at = f"blk.{layer}."
        two_norms = at + "attn_norm_2.weight" in w
        h = norm(shape, w, at + ("attn_norm_2" if two_norms else "attn_norm"), x)
        if shape.arch == "llama":
            q, k = (unrotated(w[at + f"attn_{which}.weight"], heads) for which, heads in
                    (("q", shape.heads), ("k", shape.kv_heads)))
            q, k, v = h @ q.T, h @ k.T, h @ w[at + "attn_v.weight"].T
        else:
            widths = [shape.heads * shape.head, (shape.heads + shape.kv_heads) * shape.head]
            q, k, v = np.split(h @ w[at + "attn_qkv.weight"].T, widths, -1)
        q, k, v = rope(q, shape.heads), rope(k, shape.kv_heads), v.reshape(length, shape.kv_heads, shape.head)
        k, v = (np.repeat(part, shape.heads // shape.kv_heads, 1) for part in (k, v))
        scores = np.einsum("ihd,jhd->hij", q, k) / shape.head ** 0.5
        scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("hij,jhd->ihd", weights, v).reshape(length, -1) @ w[at + "attn_output.weight"].T
        if shape.arch == "falcon":
            m = (norm(shape, w, at + "attn_norm", x) if two_norms else h) @ w[at + "ffn_up.weight"].T
            x = x + attended + (m * 0.5 * (1 + ERF(m / 2 ** 0.5))) @ w[at + "ffn_down.weight"].T
            continue
        x = x + attended
        h = norm(shape, w, at + "ffn_norm", x)
        up = h @ w[at + "ffn_up.weight"].T
        gate, up = np.split(up, 2, -1) if shape.arch == "phi3" else (h @ w[at + "ffn_gate.weight"].T, up)
        x = x + (gate / (1 + np.exp(-gate)) * up) @ w[at + "ffn_down.weight"].T
    head = w.get("output.weight", w["token_embd.weight"])
    return (norm(shape, w, "output_norm", x) @ head.T)[-1]


VARIANT_LLAMA = dict(arch="llama", hidden=32, inner=24, heads=2, kv_heads=1)
VARIANT_PHI3 = dict(arch="phi3", hidden=32, inner=24, heads=2, kv_heads=2)
VARIANT_FALCON = dict(arch="falcon", hidden=48, inner=192, heads=3, kv_heads=1)
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
SHORT = [1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
LONG = [1.1, 1.6, 2.4, 3.6, 5.0, 8.0, 12.0, 18.0]
LONGROPE = {"rope.scaling.original_context_length": 16, "rope.scaling.attn_factor": 1.5 ** 0.5}


def llama3_factors(head, theta=10000.0, factor=8.0, low=1.0, high=4.0, original=32):
    """What each frequency of Llama 3.1 is divided by."""
    out = []
    for i in range(0, head, 2):
        wavelength = 2 * np.pi * theta ** (i / head)
        if wavelength < original / high:
            out.append(1.0)
        elif wavelength > original / low:
            out.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def made(out):
    out.mkdir()
    cases = []
    reference = {case["name"]: case for case in json.loads((VARIANTS / "cases.json").read_text())}

    def variant(name, model, fields, case, tensors=(), **options):
        """A model of the engine's tests, with transformers' logits."""
        shape = Shape(**fields)
        weights = converted(shape, safetensors(VARIANTS / model / "model.safetensors")) | dict(tensors)
        held = stored(name, weights, {"": T.BF16})
        case = reference[case]
        if not shape.more and not tensors:
            off = np.abs(forward(shape, dequantised(held), case["length"]) - case["logits"]).max()
            assert off < 1e-5, (name, off)
        write(out / f"{name}.gguf", shape, held, **options)
        cases.append(dict(file=f"{name}.gguf", types="BF16", length=case["length"], logits=case["logits"]))

    def own(name, shape, kinds, length=20, **options):
        held = stored(name, drawn(name, shape, **options), kinds)
        logits = forward(shape, dequantised(held), length)
        write(out / f"{name}.gguf", shape, held)
        types = ", ".join(sorted({kind.name for kind, data in held.values() if data.ndim > 1}))
        cases.append(dict(file=f"{name}.gguf", types=types, length=length, logits=[round(float(x), 6) for x in logits]))

    variant("llama", "llama", VARIANT_LLAMA, "llama", version=2)
    variant("llama-tied", "llama-tied", VARIANT_LLAMA, "llama-tied")
    variant("llama-linear", "llama", VARIANT_LLAMA | {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0},
            "llama, linear of factor 2.0")
    variant("llama-llama3", "llama", VARIANT_LLAMA, "llama, llama3 of factor 8.0",
            tensors=[("rope_freqs.weight", llama3_factors(16))])
    variant("llama-yarn", "llama", VARIANT_LLAMA | YARN, "llama, yarn of factor 4.0")
    variant("mistral", "mistral", VARIANT_LLAMA, "mistral")
    variant("mistral-window", "mistral", VARIANT_LLAMA | {"attention.sliding_window": 5}, "mistral, a window")
    variant("phi3", "phi3", VARIANT_PHI3, "phi3")
    factors = [(f"rope_factors_{which}.weight", np.array(values, np.float32)) for which, values in
               (("short", SHORT), ("long", LONG))]
    for length in (12, 20):
        variant("phi3-longrope", "phi3", VARIANT_PHI3 | LONGROPE, f"phi3, long-rope, {length} tokens", tensors=factors)
    variant("falcon", "falcon", VARIANT_FALCON, "falcon")

    small = Shape("llama", 32, 32, 2, 1, layers=1, **{"rope.freq_base": 500.0})
    for kind in (T.F32, T.F16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
        own(f"llama-{kind.name.lower()}", small, {"": kind})
    own("phi3-q8_0", Shape("phi3", 32, 32, 2, 2, layers=1), {"": T.Q8_0}, tied=True)
    own("falcon-40b", Shape("falcon", 64, 128, 4, 2, layers=1), {"": T.Q5_1, "output": T.Q8_0}, two_norms=True)
    own("llama-k", Shape("llama", 256, 256, 2, 1, layers=1, head=32, vocabulary=32), {
        "attn_q": T.Q2_K, "attn_k": T.Q3_K, "attn_v": T.Q6_K, "attn_output": T.Q8_0, "ffn_gate": T.Q4_K, "ffn_up": T.Q5_K,
        "ffn_down": T.Q3_K, "token_embd": T.Q4_K, "output": T.Q6_K, "": T.Q4_K})

    shape = Shape(**VARIANT_LLAMA)
    held = stored("split", converted(shape, safetensors(VARIANTS / "llama/model.safetensors")), {"": T.BF16})
    names = list(held)
    for part in range(3):
        path = out / f"llama-split-{part + 1:05}-of-00003.gguf"
        write(path, shape, {name: held[name] for name in names[part::3]}, split=(part, 3, len(names)))
    case = reference["llama"]
    cases.append(dict(file="llama-split-00001-of-00003.gguf", types="BF16", length=case["length"], logits=case["logits"]))
    text = ",\n".join(json.dumps(case) for case in cases)
    (out / "models.json").write_text(f"[\n{text}\n]\n")


def pieces(path):
    """(text, score, type) of each piece of a SentencePiece model."""
    def varint(data, at):
        value = shift = 0
        while True:
            value |= (data[at] & 127) << shift
            at, shift = at + 1, shift + 7
            if data[at - 1] < 128:
                return value, at

    def fields(data):
        at = 0
        while at < len(data):
            key, at = varint(data, at)
            kind = key & 7
            if kind == 0:
                value, at = varint(data, at)
            elif kind == 2:
                size, at = varint(data, at)
                value, at = data[at:at + size], at + size
            else:
                size = {1: 8, 5: 4}[kind]
                value, at = data[at:at + size], at + size
            yield key >> 3, value

    out = []
    for number, value in fields(path.read_bytes()):
        if number == 1:
            piece = dict(fields(value))
            out.append((piece[1].decode(), struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0, piece.get(3, 1)))
    return out


def tokenizer(path, arch, model, tokens, kinds, scores=None, **more):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_name(path.stem)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    if scores is not None:
        writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    for key, value in more.items():
        key = f"tokenizer.{key}" if key == "chat_template" else f"tokenizer.ggml.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            (writer.add_string if isinstance(value, str) else writer.add_uint32)(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}{{ eos_token }}{% endfor %}"
LLAMA_BPE = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
             r"|\s+(?!\S)|\s+")
# llama.cpp's, in the order in which it applies them (`llama_vocab::impl::load` in its llama-vocab.cpp): each to what the one before left.
DEFAULT = [r"[\p{P}\$\+<=>\^~\|]+", r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)", r"\p{N}+",
           r"[0-9][0-9][0-9]"]


def converted_tokenizers(out):
    out.mkdir()
    added = lambda name: json.loads((TOKENIZERS / name / "tokenizer.json").read_text())["added_tokens"]
    cases = []

    def sentencepiece(name, model, arch="llama", extra=(), **more):
        parts = pieces(TOKENIZERS / model / "tokenizer.model")
        parts += [(token["content"], -1000.0, 3 if token["special"] else 4) for token in extra]
        texts, scores, kinds = (list(column) for column in zip(*parts))
        tokenizer(out / f"{name}.gguf", arch, "llama", texts, kinds, scores, unknown_token_id=0, bos_token_id=1, **more)

    sentencepiece("llama2", "llama_model_legacy", eos_token_id=2, add_bos_token=True, chat_template=TEMPLATE)
    sentencepiece("no-prefix", "llama_model_no_prefix", eos_token_id=2, add_space_prefix=False)
    sentencepiece("mistral", "mistral_v03", eos_token_id=2)
    extra = [token for token in added("phi3") if token["id"] >= 600]
    sentencepiece("phi3", "llama_model_legacy", "phi3", extra, eos_token_id=600, padding_token_id=600, add_bos_token=False)

    falcon = json.loads((TOKENIZERS / "falcon/tokenizer.json").read_text())
    vocabulary = falcon["model"]["vocab"] | {token["content"]: token["id"] for token in falcon["added_tokens"]}
    texts = sorted(vocabulary, key=vocabulary.get)
    assert [vocabulary[text] for text in texts] == list(range(len(texts)))
    special = {token["content"] for token in falcon["added_tokens"]}
    kinds = [3 if text in special else 1 for text in texts]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in falcon["model"]["merges"]]
    common = dict(merges=merges, eos_token_id=11, bos_token_id=11)
    tokenizer(out / "falcon.gguf", "falcon", "gpt2", texts, kinds, pre="falcon", **common)

    byte_level = lambda regex: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
    prompts = [case["text"] for case in json.loads((TOKENIZERS / "falcon/cases.json").read_text())["encode"]][::3]
    prompts += ["f\u00fcr M\u00fcller, \u00fcber 1234567 \u20ac: 12\u00be, \u00bd-Zoll", "x  =  y  ;\tz ", "  1234 12345\n 9", "12\u00b3 \u00b2\u00b3\u00b9\u2074 \u216b",
                "\u0967\u0968\u0969\u096a\u096b", "a+b<=c ~ d|e `f` ^ $5.00 100%", "\u2026 \u2014 \u201eZitat\u201c \u00abq\u00bb don't  'll we'RE"]
    # Pieces that a wrong cut would keep apart, or let grow together: the two bytes of u with dots, and a space with a digit.
    more = ["\u00c3 \u00bc", "\u0120 1"]
    joined = [merge.replace(" ", "") for merge in more]
    vocabulary = falcon["model"]["vocab"] | {token: len(texts) + i for i, token in enumerate(joined)}
    texts, kinds, common = texts + joined, kinds + [1] * len(joined), common | dict(merges=merges + more)
    for pre, ignore_merges, steps in [
        ("llama-bpe", True, [pre_tokenizers.Split(Regex(LLAMA_BPE), "isolated"), byte_level(False)]),
        ("smollm", False, [pre_tokenizers.Digits(individual_digits=True), byte_level(True)]),
        ("gpt-2", False, [byte_level(True)]),
        ("default", False, [*(pre_tokenizers.Split(Regex(rule), "isolated") for rule in DEFAULT), byte_level(False)]),
    ]:
        model = models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges + more], ignore_merges=ignore_merges)
        reference = tokenizers.Tokenizer(model)
        reference.pre_tokenizer = pre_tokenizers.Sequence(steps)
        reference.decoder = decoders.ByteLevel()
        reference.add_special_tokens(sorted(special, key=texts.index))
        tokenizer(out / f"{pre}.gguf", "llama", "gpt2", texts, kinds, pre=pre, add_bos_token=False, **common)
        encoded = [dict(text=text, ids=reference.encode(text).ids) for text in prompts]
        cases.append(dict(file=f"{pre}.gguf", encode=encoded))
    lines = ",\n".join(
        json.dumps(dict(file=case["file"])).removesuffix("}") + ', "encode": [\n'
        + ",\n".join(json.dumps(line) for line in case["encode"]) + "\n]}" for case in cases)
    (out / "tokenizers.json").write_text(f"[\n{lines}\n]\n")


def everything(out):
    out.mkdir(exist_ok=True)
    blocks(out / "blocks")
    made(out / "models")
    converted_tokenizers(out / "tokenizers")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    committed = HERE / "fixtures"
    with tempfile.TemporaryDirectory() as fresh:
        fresh = pathlib.Path(fresh)
        everything(fresh)
        names = sorted(path.relative_to(fresh) for path in fresh.rglob("*") if path.is_file())
        if parser.parse_args().check:
            there = sorted(path.relative_to(committed) for path in committed.rglob("*") if path.is_file())
            assert names == there, set(names) ^ set(there)
            different = [str(name) for name in names if not filecmp.cmp(fresh / name, committed / name, shallow=False)]
            assert not different, different
            print(f"{len(names)} files are the same")
            return
        for name in names:
            (committed / name).parent.mkdir(parents=True, exist_ok=True)
            (committed / name).write_bytes((fresh / name).read_bytes())


main()
